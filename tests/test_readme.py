"""The README holds no Python that was not run, and no link to a file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_linked_files_are_there(root: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_every_command_in_the_readme_exists() -> None:
    from srattn.cli.main import VERBS

    assert set(re.findall(r"(?m)^srattn (\w+)", TEXT)) <= set(VERBS)
