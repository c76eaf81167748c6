"""docs/explain.md: its code runs, its commands are options that there are, and its picture shows what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from PIL import Image

from srattn.cli import explain
from srattn.cli.parser import make_parser
from tests.pages import ROOT

PAGE = (ROOT / "docs" / "explain.md").read_text(encoding="utf-8")


def test_code_runs_and_has_the_shapes_that_it_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    calls = 0
    names: dict[str, object] = {"torch": torch}
    for line in code.splitlines():
        if found := re.match(r"(maps\..*?)\s+# \((.*?)\)", line):
            made = eval(found[1], names)
            heads = names["model"].config["num_heads"][0]  # type: ignore[attr-defined]  # of stage 1
            expected = [int(side) if side.isdecimal() else heads for side in found[2].split(", ")]
            assert list(made.shape) == expected, line
            calls += 1
        else:
            exec(line, names)
    assert calls == 5


def test_commands_are_understood() -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in commands.splitlines():
        parser = make_parser("explain", "")
        explain.add_arguments(parser)
        program, verb, *rest = shlex.split(line, comments=True)
        assert (program, verb) == ("srattn", "explain") and parser.parse_args(rest).images


def test_limits_are_those_of_the_code() -> None:
    from srattn.explain.attention import LARGEST
    from srattn.explain.explain import BUDGET, MOST_FOR_ONE, MOST_IMAGES

    assert f"{BUDGET >> 20} MiB of weights, rounded to 8 bits, and {MOST_FOR_ONE >> 20} MiB for an image" in PAGE
    assert f"may take {LARGEST >> 30} GiB" in PAGE and f"up to {MOST_IMAGES} images" in PAGE


def test_picture_is_there() -> None:
    for name in re.findall(r"\]\((pictures/\S+?)\)", PAGE):
        path = Path(ROOT / "docs" / name)
        assert path.with_suffix(".py").is_file()
        with Image.open(path) as picture:
            assert picture.width > 600
