"""What the site needs beside its pages: files of the repository that they link to, and the options of each verb.

Used by mkdocs (see mkdocs.yml).
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLACE = "repository"
"""The folder of the site that files from outside docs/ lie in."""
_LINK = re.compile(r"(\]\()\.\./([^)#\s]+)([^)]*\))")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_OPTIONS = re.compile(r"<!-- options of (\w+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Adds every file outside docs/ that a page links to."""
    from mkdocs.structure.files import File

    wanted: set[str] = set()
    for file in files.documentation_pages():
        wanted |= {path for _, path, _ in _LINK.findall(Path(file.abs_src_path).read_text("utf-8"))}
    for path in sorted(wanted):
        source = ROOT / path
        if source.is_dir():
            listing = "".join(f"- {entry.name}\n" for entry in sorted(source.iterdir()) if entry.suffix == ".py")
            files.append(File.generated(config, _place(path), content=f"# {path}\n\n{listing}"))
        elif source.suffix == ".md":  # its own links are not followed
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", source.read_text("utf-8"))
            files.append(File.generated(config, _place(path), content=text))
        else:
            files.append(File.generated(config, _place(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links out of docs/ to the copies, and fills in the options of verbs."""
    markdown = _LINK.sub(lambda found: f"{found[1]}{_place(found[2])}{found[3]}", markdown)
    return _OPTIONS.sub(lambda found: options_of(found[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""
    return _FORMULA.sub(lambda found: _mathml(found[2]), html)


def _mathml(formula: str) -> str:
    from html import unescape

    from latex2mathml.converter import convert

    shown = formula.startswith(r"\[")
    return convert(unescape(formula[2:-2]), display="block" if shown else "inline")


def options_of(verb: str) -> str:
    """A table of a verb's options, made from its parser."""
    from srattn.cli.main import VERBS
    from srattn.cli.parser import make_parser

    parser = make_parser(verb, VERBS[verb])
    importlib.import_module(f"srattn.cli.{verb}").add_arguments(parser)
    rows = ["| option | default | |", "|---|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest).upper()
        text = " ".join(str(action.help or "").split())
        text = re.sub(r"\s*\((?:required, )?type: .*\)$", "", text)
        default = "" if action.default in (None, argparse.SUPPRESS) or not action.option_strings else action.default
        rows.append(f"| `{_cell(name)}` | {f'`{_cell(default)}`' if default != '' else ''} | {_cell(text)} |")
    return "\n".join(rows)


def _place(path: str) -> str:
    source = ROOT / path
    name = f"{PLACE}/{path.rstrip('/')}"
    return f"{name}.md" if source.is_dir() else name


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
