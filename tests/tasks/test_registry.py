"""Tasks by name."""

from __future__ import annotations

import pytest

from srattn.errors import SrattnError
from srattn.tasks import Classification, list_tasks, make_task, register_task, registry


def test_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    assert isinstance(make_task("classification", ["a", "b"], 0.1), Classification)
    register_task("ranking", lambda classes, smoothing: Classification(classes[::-1], smoothing))
    assert make_task("ranking", ["a", "b"]).classes == ["b", "a"]  # type: ignore[attr-defined]
    assert list_tasks() == ["classification", "segmentation", "depth", "detection", "pose", "ranking"]
    with pytest.raises(SrattnError, match="registered already"):
        register_task("ranking", Classification)
    with pytest.raises(SrattnError, match="did you mean 'ranking'"):
        make_task("rankings", ["a", "b"])


def test_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def load(self) -> None:
            register_task("theirs", Classification)

    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    monkeypatch.setattr(registry, "_loaded", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [Entry()] if group == "srattn.tasks" else [])
    assert "theirs" in list_tasks()
