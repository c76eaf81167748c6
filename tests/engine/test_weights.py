"""A run as one file: loaded again, moved, damaged, or made to deceive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srattn.engine import load_run
from srattn.engine.open_model import task_of
from srattn.engine.weights import save_weights
from srattn.errors import SrattnError


def facts_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["srattn"])


def rewritten(
    finished: Path, path: Path, facts: dict[str, Any] | None, state: dict[str, torch.Tensor] | None = None
) -> Path:
    metadata = {} if facts is None else {"srattn": json.dumps(facts)}
    save_file(state or load_file(finished / "model.safetensors"), path, metadata=metadata)
    return path


def test_folder_and_file(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    assert run.classes == [str(digit) for digit in range(10)]
    assert run.preprocess.channels == 1 and run.preprocess.size == (8, 8)
    assert run.config["epochs"] == 2
    assert not run.model.training
    shutil.copy(finished / "model.safetensors", tmp_path / "moved.safetensors")
    alone = load_run(tmp_path / "moved.safetensors")
    assert alone.config == {}
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(run.model(images), alone.model(images))
    assert run.model(images).requires_grad


def test_half_the_size(finished: Path, tmp_path: Path) -> None:
    run = load_run(finished)
    path = tmp_path / "half.safetensors"
    save_weights(path, run.model, run.classes, run.preprocess, torch.float16)
    assert path.stat().st_size < 0.7 * (finished / "model.safetensors").stat().st_size
    half = load_run(path)
    for name, tensor in run.model.state_dict().items():
        found = half.model.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor)
    with torch.no_grad():
        run.model.head.weight.fill_(1e6)
    with pytest.raises(SrattnError, match=r"head\.weight holds values beyond the largest of torch\.float16"):
        save_weights(tmp_path / "beyond.safetensors", run.model, run.classes, run.preprocess, torch.float16)
    assert not (tmp_path / "beyond.safetensors").exists()


def test_paths_that_are_no_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="does not exist"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(SrattnError, match="is not a run"):
        load_run(tmp_path)
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(SrattnError, match="finish it with srattn train --resume"):
        load_run(tmp_path)
    (tmp_path / "half.safetensors").write_bytes((finished / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(SrattnError, match=r"half\.safetensors is not a whole safetensors file"):
        load_run(tmp_path / "half.safetensors")
    with pytest.raises(SrattnError, match="was not written by srattn train"):
        load_run(rewritten(finished, tmp_path / "bare.safetensors", None))


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000 + "]" * 100_000], ids=["digits", "depth"])
def test_metadata_that_python_does_not_read(finished: Path, tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.safetensors"
    text = '{"classes": 0, "preprocess": 0, "x": ' + value + "}"
    save_file(load_file(finished / "model.safetensors"), path, metadata={"srattn": text})
    assert task_of(str(path)) == "classification"
    with pytest.raises(SrattnError, match="was not written by srattn train"):
        load_run(path)
    (tmp_path / "run").mkdir()
    shutil.copy(finished / "model.safetensors", tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(f"x: {value}\n")
    with pytest.raises(SrattnError, match="is not valid YAML"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"embed_dims": [8, 8, 8, 16]}}, r"another model: .* is \S+ and must be"),
        ({"model": {"embed_dims": [2**40] * 4}}, "another model"),
        ({"model": {"embed_dims": [10**400] * 4}}, "another model"),
        ({"model": {"mlp_ratios": [10**400] * 4}}, "another model"),
        ({"model": {"depths": [10**9] * 4}}, "another model"),
        ({"model": {"depths": "many"}}, "another model"),
        ({"model": {"name": "resnet50"}}, "no model 'resnet50'"),
        ({"model": {"surprise": 1}}, "another model"),
        ({"classes": ["a", "b"]}, "classes do not match"),
        ({"classes": 10}, "classes do not match"),
        ({"preprocess": {"size": [10**6, 10**6]}}, "size must be"),
        ({"preprocess": {"channels": 3, "mean": [0] * 3, "std": [1] * 3}}, "channels"),
        ({"edge": "sharp"}, "another model"),
        ({"norm_eps": {"nobody": 1}}, "another model"),
        ({"norm_eps": {"block": 10**400}}, "another model"),
        ({"preprocess": {"mean": [10**400]}}, "mean"),
    ],
)
def test_metadata_that_is_wrong(finished: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    facts = facts_of(finished / "model.safetensors")
    for name, value in change.items():
        facts[name] = facts[name] | value if isinstance(value, dict) else value
    with pytest.raises(SrattnError, match=message) as caught:
        load_run(rewritten(finished, tmp_path / "file.safetensors", facts))
    assert "file.safetensors" in str(caught.value)


def test_weights_that_are_missing(finished: Path, tmp_path: Path) -> None:
    state = load_file(finished / "model.safetensors")
    del state["head.bias"]
    with pytest.raises(SrattnError, match=r"head\.bias is absent and must be 10"):
        load_run(rewritten(finished, tmp_path / "a.safetensors", facts_of(finished / "model.safetensors"), state))
