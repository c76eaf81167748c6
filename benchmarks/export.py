"""Our exports beside timm's own export of the same weights, in the same runtime.

    python benchmarks/export.py                  # writes benchmarks/results/export.json and export.md
    python benchmarks/export.py --rounds 5       # a short look
    python benchmarks/export.py --forms          # and other forms of a block, see srattn.export.fast.Form

timm's model is exported by torch's exporter at the shapes of the case. OpenVINO gets that ONNX file, and the same model
converted from torch by OpenVINO itself; ours is held against the faster of the two. Every candidate's answer is
compared with our model in float64 first, as `srattn bench model` does; one that differs too much gets no figure.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

from srattn.bench import runtimes
from srattn.bench.case import Answer as Logits
from srattn.bench.case import Case, Referee
from srattn.bench.machine import versions
from srattn.bench.peers import Absent, build_peer, settings_of
from srattn.bench.timing import interleave, ratios, summarise
from srattn.errors import SrattnError
from srattn.export import Options, export_model
from srattn.export.graph import FORMS

RESULTS = Path(__file__).parent / "results"
RUNTIMES = {"onnxruntime": ("float32",), "openvino": ("float32", "bfloat16")}
FORMAT = {"onnxruntime": "onnx", "openvino": "openvino"}
SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml"}
PARTS = {
    "feed_forward": ("tokens", "map", "channels"),
    "in_turn": (0, 13 << 19),
    "in_parts": (0, 2 << 20),
    "centred": (False, True),
}
"""What `--forms` varies, see `srattn.export.fast.Form`."""
BAR = {"onnxruntime": 1.3, "openvino": 1.1}


def timm_files(case: Case, runtime: str, folder: Path) -> dict[str, Path]:
    """timm's exports of a case by the name of the candidate."""
    timm = build_peer("timm", case.build(), case)
    found = {"timm": runtimes.export(timm, case, folder / "timm.onnx")}
    if runtime == "openvino":
        import openvino as ov

        program = torch.export.export(timm, (case.images(),))
        ov.save_model(ov.convert_model(program), folder / "timm_torch.xml", compress_to_fp16=False)
        found["timm, converted from torch"] = folder / "timm_torch.xml"
    return found


def our_files(case: Case, runtime: str, folder: Path, forms: bool) -> dict[str, Path]:
    """Our exports of a case, for its precision, by the name of the candidate."""
    model, name, found = case.build(), FORMAT[runtime], {}
    precision = "bfloat16" if case.dtype == "bfloat16" else "float32"
    chosen = FORMS[name]
    others = [chosen._replace(**dict(zip(PARTS, each, strict=True))) for each in itertools.product(*PARTS.values())]
    for form in dict.fromkeys([chosen, *others] if forms else [chosen]):
        told = [f"{part} {getattr(form, part)}" for part in PARTS if getattr(form, part) != getattr(chosen, part)]
        label = ", ".join(["srattn", *told])
        path = folder / f"{case.dtype}_{len(found)}{SUFFIX[runtime]}"
        FORMS[name] = form
        options = Options(format=name, size=case.size, batch=case.batch, precision=precision)  # type: ignore[arg-type]
        try:
            export_model(model, path, options)
            found[label] = path
        except SrattnError as error:
            print(f"{label}: {error}")
        finally:
            FORMS[name] = chosen
    return found


def measure(case: Case, runtime: str, paths: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """A row for each candidate: its error, its times, and how many times as fast as timm it is."""
    ours = case.build()
    referee, images = Referee(case, ours), case.images().numpy()
    settings = settings_of("timm", ours)
    runs: dict[str, Callable[[], object]] = {}
    errors: dict[str, tuple[float, float, str]] = {}
    for label, path in paths.items():
        try:
            run = runtimes.start(runtime, path, case)
        except Absent as absent:
            errors[label] = (float("inf"), 0.0, str(absent))
            continue
        answer = Logits(torch.from_numpy(np.array(run(images))).double())
        error, allowed = referee.judge(answer, *(settings if label.startswith("timm") else (None, None)))
        errors[label] = (error, allowed, "" if error <= allowed else "differs too much: not timed")
        if error <= allowed:
            runs[label] = lambda run=run: run(images)
    times = interleave(runs, rounds=rounds) if runs else {}
    peers = [label for label in times if label.startswith("timm")]
    base = min(peers, key=lambda label: summarise(times[label]).median) if peers else None
    rows = []
    for label, (error, allowed, why) in errors.items():
        timed = label in times
        rows.append(
            {
                "model": case.model,
                "batch": case.batch,
                "runtime": runtime,
                "dtype": case.dtype,
                "candidate": label,
                "seconds": summarise(times[label])._asdict() if timed else None,
                "times_as_fast": ratios(times[base], times[label])._asdict() if timed and base is not None else None,
                "error": error,
                "tolerance": allowed,
                "reason": why,
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    machine = result["machine"]
    counts = [row["seconds"]["rounds"] for row in result["rows"] if row["seconds"] is not None]
    rounds = " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else "no"
    lines = [
        "# Exports beside timm's own",
        "",
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, srattn {machine['commit']}, "
        + ", ".join(f"{name} {result['versions'][name]}" for name in ("onnxruntime", "openvino", "timm"))
        + f"; medians of {rounds} rounds, the candidates in turn, at 224 x 224. Ratios are to the faster "
        "export of timm, round by round. The bars are 1.3 in ONNX Runtime and 1.1 in OpenVINO.",
        "",
        "| model | batch | runtime | type | candidate | ms | times as fast as timm | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        names = " | ".join(str(row[key]) for key in ("model", "batch", "runtime", "dtype", "candidate"))
        if row["seconds"] is None:
            lines.append(f"| {names} | {row['reason']} | | {row['error']:.0e} |")
        else:
            ms, ratio = 1e3 * row["seconds"]["median"], row["times_as_fast"]["median"]
            lines.append(f"| {names} | {ms:.1f} | {ratio:.2f} | {row['error']:.0e} |")
    missed = [
        f"{row['model']}, batch {row['batch']}, {row['runtime']} {row['dtype']}: {row['times_as_fast']['median']:.2f}"
        for row in result["rows"]
        if row["candidate"] == "srattn"
        and row["times_as_fast"] is not None
        and row["times_as_fast"]["median"] < BAR[row["runtime"]]
    ]
    lines += ["", "Below the bar: " + ("; ".join(missed) if missed else "nothing") + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pvt_v2_b0", "pvt_v2_b2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forms", action="store_true", help="measure every form of a block")
    parser.add_argument("--add", action="store_true", help="keep the rows of --out that are not measured anew")
    parser.add_argument("--out", type=Path, default=RESULTS / "export.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []
    if args.add and args.out.is_file():
        again = set(itertools.product(args.models, args.batch, args.runtimes))
        kept = json.loads(args.out.read_text())["rows"]
        rows = [row for row in kept if (row["model"], row["batch"], row["runtime"]) not in again]
    for model, batch, runtime in itertools.product(args.models, args.batch, args.runtimes):
        with tempfile.TemporaryDirectory() as name:
            theirs = timm_files(Case(model, (224, 224), batch, threads=args.threads), runtime, Path(name))
            for dtype in RUNTIMES[runtime]:
                case = Case(model, (224, 224), batch, dtype, threads=args.threads)  # type: ignore[arg-type]
                rows += measure(case, runtime, theirs | our_files(case, runtime, Path(name), args.forms), args.rounds)
                print(model, batch, runtime, dtype, flush=True)
        rows.sort(key=lambda row: (row["model"], row["batch"], row["runtime"], row["dtype"] == "bfloat16"))
        result = {"machine": describe(args.threads), "versions": versions(), "rounds": args.rounds, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
