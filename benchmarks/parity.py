"""How close our models come to other implementations: the goldens' worst relative error per feature and output.

    python benchmarks/parity.py [--goldens ../shared/goldens]

Each golden is a small model of another implementation with random weights, an input and what that implementation
made of it. Its weights are loaded through `srattn.load_checkpoint` from its own layout; the error is
max|a - b| / max|b|. Writes benchmarks/results/parity.json and parity.md; exit code 1 where an error is above the limit
of its golden: 1e-5, or twice the golden's own distance from the same weights in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import srattn
from srattn.models.registry import variant
from srattn.tasks.dense import DenseModel, glpn, segformer

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1e-5
PATHS = ("default", "plain")

# What transformers calls our options.
_HF_NAMES = {
    "hidden_sizes": "embed_dims",
    "num_attention_heads": "num_heads",
    "sequence_reduction_ratios": "sr_ratios",
    "linear_attention": "linear",
    "image_size": "img_size",
}
# The model that a golden is a small copy of, by the beginning of its name. Its family is that of the model's file.
_MODELS = {
    "pvt_v1_": "pvt_tiny",
    "pvt_v2_": "pvt_v2_b0",
    "twins_pcpvt_": "twins_pcpvt_small",
    "twins_svt_": "twins_svt_small",
    "shunted_": "shunted_tiny",
    "mit_": "mit_b0",
    "segformer_": "mit_b0",
    "glpn_": "mit_b0",
    "cmt_": "cmt_ti",
    "p2t_": "p2t_tiny",
}
_OPTIONS = (
    "embed_dims",
    "num_heads",
    "mlp_ratios",
    "depths",
    "sr_ratios",
    "qkv_bias",
    "linear",
    "img_size",
    "num_classes",
    "window_sizes",
    "num_conv",
    "stem_channels",
    "fc_dim",
    "qk_ratio",
    "pool_ratios",
)


@dataclass(frozen=True)
class Golden:
    """One oracle. runs: for each input the images, the features by stage (from 1), and the logits or None."""

    name: str
    layout: str
    family: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    runs: list[tuple[Tensor, dict[int, Tensor], Tensor | None]]


def read_golden(folder: Path, name: str) -> Golden:
    entry = json.loads((folder / "index.json").read_text())[name]
    tensors = load_file(folder / f"{name}.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    runs = []
    for i in range(len(entry["input_sizes"])):
        prefix = f"run{i}.feature"
        features = {int(k.removeprefix(prefix)): v for k, v in tensors.items() if k.startswith(prefix)}
        runs.append((tensors[f"run{i}.input"], features, tensors.get(f"run{i}.output")))
    family = variant(model_of(name)).family.__module__.rpartition(".")[2]
    return Golden(name, entry["layout"], family, entry["config"], state, runs)


def as_double(golden: Golden) -> Golden:
    """The same inputs and results in float64."""
    runs = [
        (images.double(), {stage: f.double() for stage, f in features.items()}, None if out is None else out.double())
        for images, features, out in golden.runs
    ]
    return replace(golden, runs=runs)


def known_goldens(folder: Path) -> list[str]:
    """The goldens of families that are built here."""
    return sorted(name for name in json.loads((folder / "index.json").read_text()) if name.startswith(tuple(_MODELS)))


def model_of(golden: str) -> str:
    return next(model for prefix, model in _MODELS.items() if golden.startswith(prefix))


def options(golden: Golden) -> dict[str, Any]:
    """The golden's configuration in our words."""
    renamed = {_HF_NAMES.get(key, key): value for key, value in golden.config.items()}
    found = {key: renamed[key] for key in _OPTIONS if key in renamed}
    found.setdefault("num_classes", 10)
    if golden.layout in ("mmdet", "mmseg"):  # a backbone alone
        found["num_classes"] = 0
        if golden.family == "pvt":
            found["class_token"] = False
    return found


def build(golden: Golden, **overrides: Any) -> Any:
    """A model of ours with fresh weights for this golden, in eval mode; with its decoder where it has one."""
    if "decoder_hidden_size" in golden.config and golden.name.startswith(("segformer_seg_", "glpn_")):
        whole = {**options(golden), **overrides}
        hidden, classes = golden.config["decoder_hidden_size"], whole.pop("num_classes")
        if golden.name.startswith("glpn_"):
            return glpn("mit_b0", hidden=hidden, max_depth=golden.config["max_depth"], **whole).eval()
        return segformer("mit_b0", classes, hidden=hidden, **whole).eval()
    return srattn.create_model(model_of(golden.name), **{**options(golden), **overrides}).eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def errors(model: Any, golden: Golden) -> dict[str, float]:
    """The worst relative error over the golden's inputs, for each feature and the output."""
    worst: dict[str, float] = {}
    for images, features, output in golden.runs:
        if isinstance(model, DenseModel):
            assert output is not None
            worst["output"] = max(worst.get("output", 0.0), relative_error(model(images), output))
            continue
        # Their features of PVT are taken before the final norm.
        final, maps = model.forward_intermediates(images, norm=False)
        found: dict[str, float] = {}
        for stage, feature in features.items():
            found[f"feature{stage}"] = relative_error(*_alike(maps[stage - 1], feature))
        if output is not None:
            found["output"] = relative_error(model.forward_head(final), output)
        for key, error in found.items():
            worst[key] = max(worst.get(key, 0.0), error)
    return worst


def _alike(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Our map (B, C, H, W) and their feature in one form; a class token, which no map holds, is dropped."""
    if theirs.ndim == 4:
        return ours, theirs
    tokens = ours.flatten(2).transpose(1, 2)
    return tokens, theirs[:, theirs.shape[1] - tokens.shape[1] :]


def limit_of(own: float) -> float:
    """The error allowed against a golden that is itself `own` away from float64."""
    return max(LIMIT, 2 * own)


def measure(folder: Path) -> list[dict[str, Any]]:
    """One row for each golden and path."""
    rows = []
    for name in known_goldens(folder):
        golden = read_golden(folder, name)
        model = build(golden)
        report = srattn.load_checkpoint(model, golden.state)
        own = max(errors(copy.deepcopy(model).double(), as_double(golden)).values())
        for path in PATHS:
            with _forced(path):
                found = errors(model, golden)
            rows.append({"golden": name, "layout": report.layout, "path": path, "own": own, "errors": found})
    return rows


@contextlib.contextmanager
def _forced(path: Any) -> Iterator[None]:
    if path == "default":
        yield
    else:
        with srattn.force_path(path):
            yield


def table(result: dict[str, Any]) -> str:
    columns = ["feature1", "feature2", "feature3", "feature4", "output"]
    lines = [
        "# Parity with other implementations",
        "",
        f"Worst relative error max|a - b| / max|b| over the inputs of each golden, float32 on a CPU. The limit is "
        f"{LIMIT:g}, or twice the golden's own distance (last column) from the same weights in float64. "
        "Weights are loaded with `srattn.load_checkpoint` from each origin's own layout. "
        "transformers' goldens hold the logits alone, mmdetection's no logits.",
        "",
        f"torch {result['torch']}, {result['machine']}, commit {result['commit']}. Made by `benchmarks/parity.py`.",
        "",
        "| golden | layout | path | " + " | ".join(columns) + " | golden from float64 |",
        "|---" * (len(columns) + 4) + "|",
    ]
    for row in result["rows"]:
        cells = [f"{row['errors'][column]:.1e}" if column in row["errors"] else "" for column in columns]
        cells.append(f"{row['own']:.1e}")
        lines.append(f"| {row['golden']} | {row['layout']} | {row['path']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return "none"
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "src"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() + (" with changes" if dirty.stdout.strip() else "")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the goldens' relative errors.")
    parser.add_argument("--goldens", type=Path, default=ROOT.parent / "shared" / "goldens")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if not (arguments.goldens / "index.json").is_file():
        parser.error(f"{arguments.goldens} holds no goldens (index.json)")
    rows = measure(arguments.goldens)
    worst = max(max(row["errors"].values()) for row in rows)
    missed = [row for row in rows if max(row["errors"].values()) > limit_of(row["own"])]
    result = {
        "measure": "max|a - b| / max|b|",
        "limit": LIMIT,
        "worst": worst,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "commit": _commit(),
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "parity.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "parity.md").write_text(table(result))
    print(table(result))
    print(f"worst {worst:.1e}; {len(missed)} of {len(rows)} rows are beyond their limits")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
