"""What "auto" computes in, and what is said of a precision that the processor has no units for."""

import dataclasses
from typing import Any

import pytest
import torch

from srattn.engine import TrainConfig
from srattn.engine.config import to_dict
from srattn.engine.defaults import resolve
from srattn.engine.precision import Precision, fastest
from srattn.ops import native

CPU = torch.device("cpu")


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(native, "processor_flags", lambda: frozenset(request.param))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["avx2"], "fp32"),
        (["avx2", "avx512_bf16"], "bf16"),
        (["amx_bf16"], "bf16"),
        (["asimd", "bf16"], "bf16"),
        ([], "fp32"),
    ],
    indirect=["flags"],
)
@pytest.mark.usefixtures("flags")
def test_auto_takes_bf16_where_there_are_units(expected: str) -> None:
    assert fastest(CPU) == expected
    resolved = resolve(TrainConfig(precision="auto", device="cpu"))
    assert resolved.precision == expected
    assert to_dict(resolved)["precision"] == expected  # so a resumed run computes as it began, wherever it goes on
    assert resolve(dataclasses.replace(TrainConfig(), precision="fp32")).precision == "fp32"


@pytest.mark.parametrize(
    ("flags", "slow"),
    [(["avx2"], {"bf16", "fp16"}), (["avx512_bf16"], {"fp16"}), (["amx_bf16", "amx_fp16"], set()), ([], set())],
    indirect=["flags"],
)
@pytest.mark.usefixtures("flags")
def test_a_slow_precision_is_named(slow: set[str]) -> None:
    warnings = {name: Precision(name, CPU).warning for name in ("fp32", "bf16", "fp16")}
    assert {name for name, warning in warnings.items() if warning} == slow
    assert all("--precision fp32 or auto" in (warnings[name] or "") for name in slow)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_forward_computes_in_it_and_fp16_alone_scales_the_loss(name: Any, dtype: torch.dtype) -> None:
    precision = Precision(name, CPU)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert precision.scaler.is_enabled() == precision.skips_overflow == bool(precision.state()) == (name == "fp16")


@pytest.mark.parametrize(("scale", "skips"), [(2.0**-9, True), (2.0**-10, False)])
def test_an_overflow_at_the_least_scale_is_a_defect(scale: float, skips: bool) -> None:
    precision = Precision("fp16", CPU)
    precision.restore({**precision.state(), "scale": scale})
    assert precision.scaler.get_scale() == precision.state()["scale"] == scale
    assert precision.skips_overflow == skips
