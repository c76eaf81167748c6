"""``srattn bench``: speed and memory beside other implementations, the seed claim, and regressions."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from srattn.cli.parser import make_parser
from srattn.cli.sizes import read_size

if TYPE_CHECKING:
    import jsonargparse
    from rich.console import Console

_WHAT = {
    "model": "models of ours beside other implementations of the same, with the same weights",
    "attention": "dense attention, SRA and linear SRA as the map grows: the claim behind all this",
    "compare": "what became slower between two result files; exit code 1 where something did",
    "gpu": "the kernels of a GPU",
}


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parts = parser.add_subcommands(dest="what", required=True)
    fill = {"model": _add_model, "attention": _add_attention, "compare": _add_compare}
    if importlib.util.find_spec("srattn.bench.gpu") is not None:
        fill["gpu"] = importlib.import_module("srattn.bench.gpu").add_arguments
    for name, add in fill.items():
        part = make_parser(f"bench {name}", _WHAT[name])
        add(part)
        parts.add_subcommand(name, part, help=_WHAT[name])


def run(args: jsonargparse.Namespace) -> int:
    if args.what == "gpu":
        return importlib.import_module("srattn.bench.gpu").run(args.gpu)
    return {"model": _run_model, "attention": _run_attention, "compare": _run_compare}[args.what](args[args.what])


def _add_output(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=None, help="of every candidate alike; all cores by default")
    parser.add_argument("--out", type=str, default=None, help="a .json file for the result")
    parser.add_argument("--plot", type=str, default=None, help="a .png, .svg or .pdf file for a picture of it")
    parser.add_argument("--overwrite", action="store_true", help="replace these files where they exist")


def _add_model(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", type=str, help="models; srattn models lists them")
    parser.add_argument("--size", nargs="+", type=str, default=["224"], help="sides of the images, or HEIGHTxWIDTH")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="images at a time; each size with each batch")
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights; in training of autocast",
    )
    parser.add_argument(
        "--mode", type=Literal["inference", "train"], default="inference", help="a pass, or a step with AdamW"
    )
    parser.add_argument(
        "--peers",
        type=str,
        default="timm,transformers,onnxruntime,openvino,compile,frozen",
        help="separated by commas; onnxruntime and openvino run a peer's export, compile and frozen (with frozen "
        "weights) compile ours and every peer; none for ours alone",
    )
    parser.add_argument("--ours", type=str, default="default", help="settings of ours: default, lean, fast")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to time each case")
    parser.add_argument("--rounds", type=int, default=None, help="exactly so many rounds instead")
    parser.add_argument("--memory", type=bool, default=True, help="measure the peak memory of fresh processes")
    parser.add_argument("--seed", type=int, default=0, help="of weights and images")
    _add_output(parser)


def _add_attention(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--sides", nargs="+", type=int, default=None, help="tokens on a side of the square map")
    parser.add_argument("--dim", type=int, default=64, help="channels")
    parser.add_argument("--heads", type=int, default=1, help="heads")
    parser.add_argument("--ratio", type=int, default=8, help="R of SRA")
    parser.add_argument("--modes", type=str, default="forward,training", help="of forward, training")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to time each size")
    parser.add_argument("--limit_seconds", type=float, default=20.0, help="a run that would take longer is left out")
    parser.add_argument("--limit_gb", type=float, default=4.0, help="so is one that would need more memory")
    parser.add_argument("--memory", type=bool, default=True, help="measure the peak memory of fresh processes")
    _add_output(parser)


def _add_compare(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("a", type=str, help="the result before")
    parser.add_argument("b", type=str, help="the result after")
    parser.add_argument("--limit", type=str, default="5%", help="how much slower a row may be, beside its spread")
    parser.add_argument("--across", action="store_true", help="also where the machines differ")


def _run_model(args: jsonargparse.Namespace) -> int:
    from rich.console import Console

    from srattn.bench import plots, results, tables
    from srattn.bench.arena import Limits, cost, entries_for, measure
    from srattn.bench.case import Case
    from srattn.bench.progress import make_progress
    from srattn.errors import SrattnError
    from srattn.models.registry import registered_name

    threads = _common_checks(args)
    if args.rounds is not None and args.rounds < 1:
        raise SrattnError(f"--rounds is at least 1, got {args.rounds}")
    if min(args.batch) < 1:
        raise SrattnError(f"--batch is at least 1, got {min(args.batch)}")
    names = [registered_name(name) for name in args.names]
    words = [word for word in args.peers.split(",") if word not in ("", "none")]
    entries = entries_for(words, [word for word in args.ours.split(",") if word], args.mode)
    limits = Limits(args.seconds, args.rounds, args.memory)
    cases = [
        Case(name, read_size(size), batch, args.dtype, args.mode, threads, args.seed)
        for name in names
        for size in args.size
        for batch in args.batch
    ]
    progress = make_progress(cost(entries, limits) * len(cases))
    rows = []

    def finished() -> dict[str, Any]:
        return results.collect("model", rows, threads, {name: args[name] for name in ("seconds", "rounds", "seed")})

    try:
        for case in cases:
            rows += measure(case, entries, limits, progress)
    except BaseException:  # Ctrl-C too: what was measured is shown, and nothing is written
        progress.close()
        tables.models(finished(), _console(Console()))
        raise
    progress.close()
    result = finished()
    tables.models(result, _console(Console()))
    _write(args, result, plots.models)
    wrong = [row for row in rows if row["candidate"] == "srattn" and row["seconds"] is None]
    return 1 if wrong else 0  # a default model of ours without a figure is no result to be quiet about


def _run_attention(args: jsonargparse.Namespace) -> int:
    from rich.console import Console

    from srattn.bench import attention, plots, results, tables
    from srattn.bench.progress import make_progress

    threads = _common_checks(args)
    setup = attention.Setup(
        tuple(args.sides or attention.SIDES),
        args.dim,
        args.heads,
        args.ratio,
        tuple(word for word in args.modes.split(",") if word),
        threads,
        args.seconds,
        args.limit_seconds,
        args.limit_gb * 1e9,
        args.memory,
    )
    setup.check()
    progress = make_progress(setup.cost())
    try:
        rows = attention.measure(setup, progress)
    finally:
        progress.close()
    result = results.collect("attention", rows, threads, setup.settings())
    result["exponents"] = attention.exponents(rows)
    tables.attention(result, _console(Console()))
    _write(args, result, plots.attention)
    return 0


def _run_compare(args: jsonargparse.Namespace) -> int:
    from rich.console import Console

    from srattn.bench import results, tables
    from srattn.bench.compare import BAD, compare, parse_limit

    limit = parse_limit(args.limit)
    found = compare(results.read(args.a), results.read(args.b), limit, args.across)
    tables.changes(found, limit, _console(Console()))
    return 1 if any(change.verdict in BAD for change in found) else 0


def _common_checks(args: jsonargparse.Namespace) -> int:
    """The number of threads, once everything that can be wrong before work starts was looked at."""
    import os

    from srattn.bench.results import check_free
    from srattn.errors import SrattnError, missing_extra

    if args.threads is not None and args.threads < 1:
        raise SrattnError(f"--threads is at least 1, got {args.threads}")
    if args.seconds < 0:
        raise SrattnError(f"--seconds is not negative, got {args.seconds}")
    check_free(args.out, args.overwrite, (".json",))
    check_free(args.plot, args.overwrite, (".png", ".svg", ".pdf"))
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "bench")
    affinity = getattr(os, "sched_getaffinity", None)
    return args.threads or (len(affinity(0)) if affinity else os.cpu_count() or 1)


def _write(args: jsonargparse.Namespace, result: dict[str, Any], draw: Callable[..., None]) -> None:
    from srattn.bench import results

    if args.out is not None:
        results.write(result, args.out, args.overwrite)
        print(f"wrote {args.out}")
    if args.plot is not None:
        draw(result, args.plot, args.overwrite)
        print(f"wrote {args.plot}")


def _console(console: Console) -> Console:
    """In a file or a pipe the lines are as long as they need to be."""
    if not console.is_terminal:
        console.width = max(console.width, 600)
    return console
