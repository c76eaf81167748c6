"""`srattn models`: the heads that each task knows. The models themselves are in test_plan.py."""

from __future__ import annotations

import json

import pytest

from srattn.cli.main import main
from srattn.heads import head_options
from srattn.tasks.models import build_task_model, heads_of
from srattn.tasks.registry import list_tasks


def test_the_heads_of_every_task_stand_below_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pvt_tiny"]) == 0
    out = capsys.readouterr().out
    for task in list_tasks():
        kinds = heads_of(task)
        assert (f"heads of {task}" in out) == bool(kinds)
        assert not kinds or f"{task}, on any of them: {', '.join(kinds)}\n" in out


def test_a_name_of_weights_shows_their_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "hf-hub:timm/pvt_v2_b0.in1k", "--format", "json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["pvt_v2_b0"]


def test_heads_with_options_that_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--heads", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(each["task"], each["head"]) for each in found} == {
        (task, head) for task in list_tasks() for head in heads_of(task)
    }
    for each in found:
        options = each["options"]
        assert options and not {"device", "dtype"} & options.keys(), "places are no options"
        if each["task"] == "segmentation":
            assert options == json.loads(json.dumps(head_options(each["head"])))
        # Every option is one that the task's model takes; the defaults make a model.
        build_task_model(each["task"], "pvt_v2_b0", 3, each["head"], options, device="meta")
    assert main(["models", "--heads"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "segmentation  segformer  hidden=256, projection_norm=False, drop_rate=0.1" in lines
    assert len(lines) == len(found) + 1


def test_heads_by_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--heads", "u*"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]] == ["upernet", "unet"]
    assert main(["models", "--heads", "retinanett"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean 'retinanet'" in error
