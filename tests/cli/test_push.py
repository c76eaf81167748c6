"""`srattn push`, from the command line, of models of every task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import srattn
from srattn.cli.main import main
from srattn.data.preprocess import Preprocess
from srattn.engine.weights import save_weights
from srattn.tasks.models import build_task_model

pytest.importorskip("huggingface_hub")

SMALL: dict[str, Any] = {
    "embed_dims": (8, 8, 16, 16),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 2),
    "mlp_ratios": (2, 2, 2, 2),
    "sr_ratios": (2, 1, 1, 1),
}


@pytest.mark.parametrize(
    ("task", "options"), [("segmentation", {"hidden": 16}), ("detection", {"width": 16, "convs": 1})]
)
def test_a_run_of_masks_or_boxes(
    task: str, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = build_task_model(task, "pvt_v2_b0", 2, head_options=options, **SMALL)
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "model.safetensors", model, ["a", "b"], Preprocess(size=(64, 64)), task=task)
    out = tmp_path / "hub"
    assert main(["push", str(tmp_path / "run"), "--folder", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert srattn.from_pretrained(out).task == task
    assert "tags:\n- srattn\n- spatial-reduction-attention\n- pvt_v2_b0" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE"], "give either OWNER/NAME on the hub, or --folder"),
        (["FILE", "someone/ants", "--folder", "x"], "give either OWNER/NAME on the hub, or --folder"),
        (["FILE", "--folder", "x"], "a backbone without a head; the hub's form is for models that answer"),
        (["FILE", "ants"], "OWNER/NAME, got 'ants'"),
        (["nothing", "--folder", "x"], "nothing does not exist"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    body = srattn.create_model("pvt_v2_b0", num_classes=0, **SMALL)
    file = srattn.save_checkpoint(body, tmp_path / "body.safetensors")
    assert main(["push", *(str(file) if argument == "FILE" else argument for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("srattn: error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "x").exists()
