"""A tiny model, its program and the cases that its files are held against, made once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import srattn
from srattn.data.preprocess import Preprocess
from srattn.export import verify
from srattn.export.facts import Facts
from srattn.export.graph import make_graph, make_program
from srattn.export.options import Options
from srattn.models.backbone import Backbone

SMALL = {"embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "depths": (1, 1), "sr_ratios": (2, 1)}
LABELS = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return srattn.create_model("pvt_v2_b0", num_classes=5, **SMALL).eval()


@dataclasses.dataclass
class Traced:
    """A saved program of torch.export with the cases beside it."""

    program: str
    cases: list[str]
    facts: Facts


@pytest.fixture(scope="session")
def traced(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Traced]:
    """By name: "fixed" sizes; "dynamic" height and width with the feature maps; "pictures" of any size."""
    asked = {
        "fixed": Options(size=(40, 48)),
        "dynamic": Options(size=(40, 48), dynamic=("height", "width"), task="features"),
        "pictures": Options(size=(40, 48), preprocess=True),
    }
    found = {}
    for name, options in asked.items():
        folder = tmp_path_factory.mktemp(name)
        preprocess = Preprocess(size=options.size, fit="crop")
        graph = make_graph(tiny, options, preprocess)
        program, absorbed = make_program(graph, options)
        torch.export.save(program, folder / "program.pt2")
        facts = Facts(options, LABELS, preprocess, graph.outputs(), tiny.config, {}, absorbed)
        found[name] = Traced(str(folder / "program.pt2"), verify.write_cases(graph, options, [], folder), facts)
    return found


@pytest.fixture(scope="session")
def made_once(traced: dict[str, Traced], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from srattn.export.export import make

    facts = traced["fixed"].facts
    facts = dataclasses.replace(facts, options=dataclasses.replace(facts.options, format="torch"))
    path = tmp_path_factory.mktemp("made") / "model.pt2"
    make(traced["fixed"].program, str(path), traced["fixed"].cases, facts.to_text())
    return path


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """A stamped program of fixed sizes in a file of its own."""
    return Path(shutil.copy(made_once, tmp_path / "model.pt2"))
