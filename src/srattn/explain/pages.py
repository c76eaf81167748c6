"""What all pages have in common: one environment for templates, and the parts that are written once, in report.html."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

import jinja2

from srattn.explain.words import bytes_text, count_text, percent_text, seconds_text, without_controls


def template(name: str, parts: Sequence[str] = ()) -> jinja2.Template:
    """A template of this folder, that escapes what it is given and may include these sections of report.html."""
    main = _read("report.html")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.DictLoader({part: _between(main, f'<section id="{part}">', "</section>") for part in parts}),
    )
    environment.filters.update(seconds=seconds_text, bytes=bytes_text, count=count_text, percent=percent_text)
    environment.filters["plain"] = without_controls
    return environment.from_string(_read(name))


def style() -> str:
    """The look of the report, as CSS."""
    return _between(_read("report.html"), "<style>\n", "</style>").removeprefix("<style>\n").removesuffix("</style>")


def _read(name: str) -> str:
    return files("srattn.explain").joinpath(name).read_text("utf-8")


def _between(text: str, start: str, end: str) -> str:
    found = re.search(f"{re.escape(start)}.*?{re.escape(end)}", text, re.DOTALL)
    assert found is not None, f"report.html has no {start}"
    return found[0]
