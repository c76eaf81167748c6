"""docs/models.md is what docs/models.py writes, and its figures agree with the published ones.

Every parameter count is checked, and the multiply-adds of the smallest model of each family; `python docs/models.py
--check` counts all.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from srattn.models import build_model, list_models
from srattn.models.registry import count_parameters, variant
from srattn.models.weights import find_weights
from tests.pages import load_script

script: Any = load_script("models")
TEXT = script.PAGE.read_text(encoding="utf-8")


def _figures() -> dict[str, Any]:
    """What the page says was measured, by model."""
    figures = {}
    for line in re.findall(r"(?m)^\| `.*\|$", TEXT):
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        by_name = dict(zip(script.HEAD, cells, strict=True))
        figures[by_name["model"].strip("` ")] = script.Measured(
            parameters=int(by_name["parameters"].replace(",", "")),
            size=tuple(map(int, by_name["image"].split("x"))),
            macs=round(float(by_name["GMACs"]) * 1e9),
            activations=round(float(by_name["activations"]) * 1e6),
        )
    return figures


FIGURES = _figures()


def _smallest() -> list[str]:
    families: dict[str, list[str]] = {}
    for name in FIGURES:
        families.setdefault(variant(name).family.__module__, []).append(name)
    return [min(names, key=lambda name: FIGURES[name].macs) for names in families.values()]


def test_page_has_every_model_with_its_parameters() -> None:
    counts = {name: count_parameters(build_model(name, device="meta")) for name in list_models()}
    assert {name: figures.parameters for name, figures in FIGURES.items()} == counts


def test_page_is_what_the_script_makes_of_these_figures() -> None:
    assert script.render(FIGURES) == TEXT


@pytest.mark.parametrize("name", _smallest())
def test_multiply_adds_and_activations(name: str) -> None:
    measured, shown = script.measure(name), FIGURES[name]
    assert measured.size == shown.size
    assert f"{measured.macs / 1e9:.3f}" == f"{shown.macs / 1e9:.3f}"
    assert f"{measured.activations / 1e6:.2f}" == f"{shown.activations / 1e6:.2f}"


@pytest.mark.parametrize("name", script.PUBLISHED_GMACS)
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    apart = abs(script.deviation(name, FIGURES[name].macs))
    # An exception that is none any more is struck from the list.
    assert (apart > script.TOLERANCE) == (name in script.EXCEPTIONS), f"{name} is {apart:.1%} from the published figure"


def test_published_figures_are_of_registered_models() -> None:
    published = {*script.PUBLISHED_GMACS, *script.PUBLISHED_TOP1, *script.EXCEPTIONS}
    assert published <= set(list_models())
    # Those of published weights stand with the weights, and only there.
    assert [name for name in script.PUBLISHED_TOP1 if find_weights(name) is not None] == []


def test_activations_are_those_that_timm_counts() -> None:
    # From timm's results table.
    for name, millions in {"pvt_v2_b2": 27.5, "twins_pcpvt_small": 18.1, "mvitv2_large": 112.0}.items():
        assert round(FIGURES[name].activations / 1e6, 1) == millions
