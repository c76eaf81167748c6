from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from srattn import SrattnError
from srattn.bench import arena, plots, results, tables
from srattn.bench.arena import Limits, Rates, entries_for, measure
from srattn.bench.candidates import Entry, peak_in_child
from srattn.bench.case import FLOOR, Answer, Case, Referee, answer, distance, work
from srattn.bench.memory import in_child

LIMITS = Limits(rounds=3, memory=False)


@pytest.fixture(autouse=True)
def _rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_rates", lambda case: Rates(1e11, 1e10))


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["candidate"]: row for row in rows}


def entries(*names: str) -> list[Entry]:
    return [Entry("srattn"), *(Entry(name) for name in names)]


def test_only_right_answers_get_figures(fakes: None, case: Case) -> None:
    rows = by_name(measure(case, entries("twin", "wrong", "eps", "broken", "absent"), LIMITS))
    for name in ("srattn", "twin"):
        row = rows[name]
        assert row["reason"] is None and row["error"] <= row["tolerance"]
        assert row["seconds"]["rounds"] == 3
        assert row["seconds"]["least"] <= row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"]["median"])
        assert row["matrix_fraction"] == pytest.approx(row["counted_flops"] / row["seconds"]["median"] / 1e11)
    assert rows["srattn"]["ratio_to_ours"]["median"] == 1
    for name in ("wrong", "eps"):
        assert rows[name]["seconds"] is None and rows[name]["ratio_to_ours"] is None
        assert rows[name]["error"] > rows[name]["tolerance"] and "differs by" in rows[name]["reason"]
    assert rows["broken"]["reason"] == "RuntimeError: no such thing"
    assert rows["absent"]["reason"] == "not installed"


def test_training_compares_gradients(fakes: None, case: Case) -> None:
    rows = by_name(measure(replace(case, mode="train"), entries("twin", "gradient"), LIMITS))
    assert rows["twin"]["seconds"] is not None
    assert rows["gradient"]["seconds"] is None and "differs by" in rows["gradient"]["reason"]
    assert rows["srattn"]["counted_flops"] == 3 * work(case).flops


def test_threads_are_put_back(fakes: None, case: Case) -> None:
    before = torch.get_num_threads()
    measure(replace(case, size=(32, 32), batch=1, threads=before + 1), entries(), Limits(rounds=1, memory=False))
    assert torch.get_num_threads() == before


def test_setting_that_a_model_has_not(fakes: None, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from srattn.models.backbone import Backbone

    monkeypatch.setattr(Backbone, "set_memory", None, raising=False)
    rows = measure(case, [Entry("srattn"), Entry("srattn", setting="lean")], LIMITS)
    assert rows[1]["candidate"] == "srattn lean" and rows[1]["reason"] == "pvt_v2_b0 has no setting of memory"


def test_runtime_without_a_peer(fakes: None, case: Case) -> None:
    rows = measure(case, [Entry("srattn"), Entry("broken"), Entry("", how="onnxruntime")], LIMITS)
    assert rows[2]["candidate"] == "onnxruntime" and "no peer could be built" in rows[2]["reason"]


def test_memory_of_a_fresh_process(case: Case) -> None:
    larger = replace(case, size=(512, 512), batch=4)
    arguments = {"case": larger.to_json(), "entry": {"source": "srattn"}, "onnx": None}
    peak = in_child(peak_in_child.__module__, "peak_in_child", arguments, 1)
    if peak is None:
        pytest.skip("this system does not tell a process its peak memory")
    assert peak > 2 * larger.batch * 128 * 128 * 8 * 4  # the first stage's tokens before and after a block, at least


def test_entries() -> None:
    found = entries_for(["timm", "compile", "openvino"], ["default", "lean"], "inference")
    assert [e.name for e in found] == [
        "srattn",
        "srattn lean",
        "srattn compile",
        "timm",
        "timm compile",
        "openvino",
    ]
    training = entries_for(["timm", "compile", "frozen", "openvino"], [], "train")
    assert [e.name for e in training] == ["srattn", "srattn compile", "timm", "timm compile"]
    with pytest.raises(SrattnError, match="did you mean 'timm'"):
        entries_for(["tim"], [], "inference")
    with pytest.raises(SrattnError, match="no setting 'leen'; did you mean 'lean'"):
        entries_for([], ["leen"], "inference")


def test_work_is_that_of_the_published_formula() -> None:
    counted = work(Case("pvt_v2_b0", (224, 224), batch=2))
    assert counted.flops / 2 / 2e9 == pytest.approx(0.57, rel=0.02)  # multiply-adds as timm publishes them
    weights = 3.67e6
    assert counted.bytes > 4 * (weights + 2 * 3 * 224 * 224)


def test_referee_takes_the_settings_of_an_origin(case: Case) -> None:
    ours = case.build()
    referee = Referee(case, ours)
    theirs = case.build()
    theirs.set_norm_eps(1e-6, 1e-6, 1e-6)
    found = answer(theirs, theirs, case)
    assert referee.judge(found, theirs.norm_eps, "floor")[0] < FLOOR
    with torch.no_grad():
        theirs.head.bias[0] = float("nan")
    assert referee.judge(answer(theirs, theirs, case))[0] == float("inf")


def test_distance_needs_every_gradient() -> None:
    one = torch.ones(1, 2, dtype=torch.float64)
    assert distance(Answer(one, {"a": one}), Answer(one, {"a": one})) == 0
    assert distance(Answer(one, {}), Answer(one, {"a": one})) == float("inf")
    assert distance(Answer(one, {"a": 2 * one}), Answer(one, {"a": one})) == 1


def test_same_seed_same_weights(case: Case) -> None:
    a, b, c = case.build(), case.build(), replace(case, seed=1).build()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.head.weight, c.head.weight)
    assert all(float(p.detach().std()) > 0 for p in a.parameters() if p.numel() > 1)  # none is constant
    assert Case.of_json(json.loads(json.dumps(case.to_json()))).size == case.size


def test_written_read_shown_and_drawn(fakes: None, case: Case, tmp_path: Any) -> None:
    from rich.console import Console

    rows = measure(case, entries("twin", "wrong"), LIMITS)
    result = results.collect("model", rows, 1, {"rounds": 3})
    path = tmp_path / "a.json"
    results.write(result, path)
    assert results.read(path) == json.loads(json.dumps(result))
    assert {"machine", "versions", "command", "date"} <= set(result) and result["machine"]["commit"]
    with pytest.raises(SrattnError, match="exists"):
        results.write(result, path)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables.models(result, console)
    console.file.close()
    text = console.export_text()
    assert "wrong: differs by" in text and "twin" in text and "GFLOP/s" in text
    pytest.importorskip("matplotlib")
    plots.models(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
