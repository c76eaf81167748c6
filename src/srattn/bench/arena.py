"""`srattn bench model`: every candidate checked, then timed in turn in one process, then its memory in a fresh one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from srattn.bench import peers, runtimes
from srattn.bench.candidates import COMPILED, OURS, Builder, Candidate, Entry, peak_in_child
from srattn.bench.case import Case, Referee, Work, work
from srattn.bench.machine import copy_rate, matrix_rate
from srattn.bench.memory import ChildFailed, in_child
from srattn.bench.peers import Absent
from srattn.bench.progress import Progress, Silent
from srattn.bench.timing import Summary, interleave, ratios, summarise
from srattn.errors import SrattnError, nearest

SETTINGS = ("default", "lean", "fast")
ALL_PEERS = (*peers.PEERS, *runtimes.RUNTIMES, *COMPILED)

# What a step costs in seconds, about: for the time left.
_BUILD, _COMPILE, _RATES, _CHILD = 3.0, 30.0, 6.0, 6.0


class Limits(NamedTuple):
    """How long to measure a case: about `seconds`, or exactly `rounds`."""

    seconds: float = 20.0
    rounds: int | None = None
    memory: bool = True


class Rates(NamedTuple):
    """The machine's own best: matrix products in FLOP/s in the type of the case, a copy in bytes/s."""

    flops: float
    bytes: float


def entries_for(wanted: Sequence[str], settings: Sequence[str], mode: str) -> list[Entry]:
    """The entries that the words of --peers and --ours ask for, ours first.

    Raises:
        SrattnError: an unknown word, with the nearest.
    """
    known = list(dict.fromkeys([*peers.PEERS, *runtimes.RUNTIMES, *COMPILED]))
    for word in wanted:
        if word not in known:
            raise SrattnError(f"no peer {word!r}{nearest(word, known)}; peers are {', '.join(known)}")
    for word in settings:
        if word not in SETTINGS:
            raise SrattnError(f"no setting {word!r}{nearest(word, SETTINGS)}; settings are {', '.join(SETTINGS)}")
    named = [word for word in wanted if word in peers.PEERS]
    ways = [word for word in COMPILED if word in wanted and not (word == "frozen" and mode == "train")]
    found = [Entry(OURS, setting=setting) for setting in settings or ("default",)]
    found += [Entry(OURS, how=way) for way in ways]
    for peer in named:
        found += [Entry(peer), *(Entry(peer, how=way) for way in ways)]
    if mode == "inference":
        found += [Entry("", how=word) for word in wanted if word in runtimes.RUNTIMES]
    return found


def measure(
    case: Case, entries: Sequence[Entry], limits: Limits, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """A JSON-able row for each entry; see `row` for what stands in it.

    Threads are set for the time of the measurement. No figure is taken of an entry whose answer is wrong.

    Raises:
        SrattnError: our own model cannot be built (unknown name, a size that is too small).
    """
    progress = progress or Silent()
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    torch.compiler.reset()
    try:
        with tempfile.TemporaryDirectory(prefix="srattn-bench-") as folder:
            return _measure(case, list(entries), limits, progress, Path(folder))
    finally:
        torch.set_num_threads(before)


def cost(entries: Sequence[Entry], limits: Limits) -> float:
    """Seconds that a case takes, about."""
    building = sum(_COMPILE if entry.how in COMPILED else _BUILD for entry in entries)
    return building + _RATES + timing_cost(entries, limits) + (_CHILD * len(entries) if limits.memory else 0.0)


def timing_cost(entries: Sequence[Entry], limits: Limits) -> float:
    """The part of `cost` that goes into timing."""
    return limits.seconds if limits.rounds is None else 0.3 * limits.rounds * len(entries)


def _measure(
    case: Case, entries: list[Entry], limits: Limits, progress: Progress, folder: Path
) -> list[dict[str, Any]]:
    builder = Builder(case, folder)
    counted = work(case)
    referee = Referee(case, builder.ours)
    reasons: dict[Entry, str] = {}
    verdicts: dict[Entry, tuple[float, float]] = {}
    ready: dict[Entry, Candidate] = {}
    for place, entry in enumerate(entries):
        progress.note(f"{case.title}: checking {entry.name}")
        try:
            entry = entries[place] = _with_source(entry, entries, reasons)
            candidate = builder.candidate(entry)
            settings = (None, None) if entry.source == OURS else peers.settings_of(entry.source, builder.ours)
            verdicts[entry] = error, allowed = referee.judge(candidate.answer(), *settings)
        except Absent as absent:
            reasons[entry] = str(absent)
        else:
            if error <= allowed:
                ready[entry] = candidate
            else:
                reasons[entry] = f"differs by {error:.1e}, {allowed:.1e} is allowed: not timed"
        progress.advance(_COMPILE if entry.how in COMPILED else _BUILD)

    progress.note(f"{case.title}: timing")
    rates = _rates(case)
    progress.advance(_RATES / 2)
    total, told = timing_cost(entries, limits), 0.0

    def tell(part: float) -> None:
        nonlocal told
        progress.advance(part * total - told)
        told = part * total

    runs = {entry.name: candidate.run for entry, candidate in ready.items()}
    times = interleave(runs, seconds=limits.seconds, rounds=limits.rounds, tell=tell, seed=case.seed) if runs else {}
    ready.clear()
    # Once before and once after, since each can meet a slow moment of the machine.
    rates = Rates(*map(max, rates, _rates(case)))
    progress.advance(_RATES / 2)

    rows = []
    base = next((entry for entry in entries if entry.name in times and entry.source == OURS), None)
    for entry in entries:
        peak: int | None = None
        why = reasons.get(entry)
        if entry.name in times and limits.memory:
            progress.note(f"{case.title}: memory of {entry.name}")
            onnx = str(builder.exported(entry)) if entry.how in runtimes.RUNTIMES else None
            arguments = {"case": case.to_json(), "entry": entry.to_json(), "onnx": onnx}
            try:
                peak = in_child(peak_in_child.__module__, peak_in_child.__name__, arguments, case.threads)
            except ChildFailed as failed:
                why = f"memory not measured: {failed}"
            progress.advance(_CHILD)
        values = times.get(entry.name)
        against = times[base.name] if base is not None and values else None
        rows.append(row(case, entry, verdicts.get(entry), values, against, counted, rates, peak, why))
    return rows


def _rates(case: Case) -> Rates:
    return Rates(matrix_rate(case.torch_dtype), copy_rate())


def _with_source(entry: Entry, entries: Sequence[Entry], reasons: dict[Entry, str]) -> Entry:
    """A runtime's entry with the peer whose export it runs: the first one that could be built."""
    if entry.source:
        return entry
    peers_here = [e.source for e in entries if e.source in peers.PEERS and e.how == "eager" and e not in reasons]
    if not peers_here:
        raise Absent("needs a peer's export, and no peer could be built (timm or transformers, among --peers)")
    return Entry(peers_here[0], how=entry.how)


def row(
    case: Case,
    entry: Entry,
    verdict: tuple[float, float] | None,
    values: list[float] | None,
    base: list[float] | None,
    counted: Work,
    rates: Rates,
    peak: int | None,
    why: str | None,
) -> dict[str, Any]:
    """One line of the result file. Times are seconds, memory is bytes, fractions are of the rates measured beside."""
    times = None if not values else summarise(values)
    ratio = None if not values or not base else ratios(values, base)
    return {
        "model": case.model,
        "size": list(case.size),
        "batch": case.batch,
        "dtype": case.dtype,
        "mode": case.mode,
        "candidate": entry.name,
        "seconds": None if times is None else _record(times),
        "images_per_second": None if times is None else case.batch / times.median,
        "ratio_to_ours": None if ratio is None else _record(ratio),
        "peak_bytes": peak,
        "matrix_fraction": None if times is None else counted.flops / times.median / rates.flops,
        "copy_fraction": None if times is None else counted.bytes / times.median / rates.bytes,
        "error": None if verdict is None else verdict[0],
        "tolerance": None if verdict is None else verdict[1],
        "counted_flops": counted.flops,
        "counted_bytes": counted.bytes,
        "matrix_rate": rates.flops,
        "copy_rate": rates.bytes,
        "reason": why,
    }


def _record(summary: Summary) -> dict[str, float | int]:
    return summary._asdict()
