"""The site is built without a warning, and every Python block of the pages runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = [
    pytest.param(page, block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
]


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_code_runs(page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import srattn

    # What the pages take for granted: a run, and a folder in the hub's form.
    (tmp_path / "OWNER").mkdir()
    srattn.save_pretrained("box", tmp_path / "OWNER" / "NAME")
    (tmp_path / "runs" / "photos-1").mkdir(parents=True)
    shutil.copy(DOCS.parent / "src/srattn/weights/cifar10.safetensors", tmp_path / "runs/photos-1/model.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page.name, "exec"), {})


def test_every_verb_has_its_options_and_an_example() -> None:
    from srattn.cli.main import VERBS

    text = (DOCS / "verbs.md").read_text("utf-8")
    assert re.findall(r"<!-- options of (\w+) -->", text) == re.findall(r"(?m)^## (\w+)", text)
    assert set(re.findall(r"(?m)^## (\w+)", text)) == set(VERBS)
    assert set(re.findall(r"(?m)^srattn (\w+)", text)) == set(VERBS)


def test_every_command_of_the_pages_is_understood() -> None:
    from srattn.cli.main import VERBS
    from srattn.cli.parser import make_parser

    seen = set()
    for page in [DOCS.parent / "README.md", *DOCS.glob("*.md")]:
        blocks = re.findall(r"(?m)^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL)
        for block in (text for language, text in blocks if language in ("", "sh")):
            for line in re.findall(r"(?m)^(?:torchrun .* -m )?srattn (?!.*\.\.\.$)(.*)$", block):
                verb, *rest = shlex.split(line, comments=True)
                parser = make_parser(verb, VERBS[verb])
                importlib.import_module(f"srattn.cli.{verb}").add_arguments(parser)
                parser.parse_args(rest)  # a wrong option raises
                seen.add(verb)
    assert seen == set(VERBS)


@pytest.mark.parametrize("room", ["", "models", "convert", "data", "heads", "tasks", "engine", "export", "serve"])
def test_every_public_name_stands_in_the_reference(room: str) -> None:
    """What a package gives by `from A import B as B`, with the place where it is defined."""
    file = Path(importlib.import_module(f"srattn.{room}".rstrip(".")).__file__ or "")
    given = re.findall(r"(?m)^ *from ([\w.]+) import (\w+) as \2$", file.read_text("utf-8"))
    page = set(re.findall(r"(?m)^::: (\S+)$", (DOCS / "api.md").read_text("utf-8")))
    found = {name: getattr(importlib.import_module(module), name) for module, name in given if name != "__version__"}
    places = {name: f"{value.__module__}.{value.__qualname__}" for name, value in found.items()}
    assert places and [name for name, place in places.items() if place not in page] == []


def test_linked_files_are_there() -> None:
    for page in DOCS.glob("*.md"):
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
        missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
        assert missing == [], page.name


def test_the_site_is_built_strictly(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # the theme's greeting
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert {"maths", "choosing", "verbs", "api", "models", "dense"} <= pages
    verbs = (tmp_path / "site/verbs/index.html").read_text("utf-8")
    assert "--on_bad_image" in verbs and "options of" not in verbs
    maths = (tmp_path / "site/maths/index.html").read_text("utf-8")
    assert maths.count("<math") > 10 and "arithmatex" not in maths
    api = (tmp_path / "site/api/index.html").read_text("utf-8")
    assert "SpatialReductionAttention" in api and "Raises" in api
