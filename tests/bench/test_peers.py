"""The real peers, where they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from srattn.bench import peers, runtimes
from srattn.bench.case import Case, Referee, answer
from srattn.bench.peers import Absent, build_peer, our_names, settings_of


def test_peer_without_the_family(case: Case) -> None:
    shunted = Case("shunted_tiny", (64, 64))
    for name, peer in peers.PEERS.items():
        if peer.needs is None:
            continue
        with pytest.raises(Absent, match=r"has no shunted|not installed|cannot be imported"):
            build_peer(name, shunted.build("meta"), shunted)


def test_runtime_runs_no_training(tmp_path: Path) -> None:
    with pytest.raises(Absent, match="inference alone"):
        runtimes.start("openvino", tmp_path / "a.onnx", Case("pvt_v2_b0", (64, 64), mode="train"))


@pytest.mark.parametrize("mode", ["inference", "train"])
def test_transformers(case: Case, mode: str) -> None:
    pytest.importorskip("transformers", reason="needs the extra: pip install 'srattn[transformers]'")
    from dataclasses import replace

    case = replace(case, mode=mode)  # type: ignore[arg-type]
    ours = case.build()
    theirs = build_peer("transformers", ours, case)
    eps, edge = settings_of("transformers", ours)
    assert eps["reduction"] == 1e-6 and edge == "floor"
    found = answer(theirs, theirs, case, lambda gradients: our_names("transformers", ours, gradients))
    error, allowed = Referee(case, ours).judge(found, eps, edge)
    assert error <= allowed


def test_first_cause_in_one_line() -> None:
    try:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise RuntimeError("\x1b[96mthe consequence\x1b[0m") from error
    except RuntimeError as error:
        assert peers.one_line(error) == "KeyError: 'the cause'"
        error.__cause__ = None
        assert peers.one_line(error) == "RuntimeError: the consequence"


def test_gradients_move_as_weights_do(case: Case) -> None:
    ours = case.build()
    state = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    from srattn.convert.state import from_ours
    from srattn.convert.variants import context_of

    theirs, _ = from_ours(state, "timm", "pvt_v2", context_of(ours))
    back = our_names("timm", ours, theirs)
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)
