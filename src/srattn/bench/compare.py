"""`srattn bench compare`: what became slower between two result files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from srattn.bench.results import KINDS
from srattn.errors import SrattnError

Verdict = Literal["same", "faster", "slower", "lost", "new", "none"]
BAD: tuple[Verdict, ...] = ("slower", "lost")
_MACHINE = ("cpu", "cores", "threads", "capability")


@dataclass(frozen=True)
class Change:
    """One row of both files. ratio: seconds of B over seconds of A; spread: what the noise of both explains of it.

    verdict: "slower" beyond limit and spread, "faster" likewise, "lost" where A had a figure and B has none, "new"
    where only B has one, "none" where neither has.
    """

    label: str
    before: float | None
    after: float | None
    ratio: float | None
    spread: float
    memory: float | None
    """Peak bytes of B over those of A, where both were measured."""
    verdict: Verdict
    reason: str


def compare(a: Mapping[str, Any], b: Mapping[str, Any], limit: float, across: bool = False) -> list[Change]:
    """Every row of either result, in the order of A.

    Args:
        a, b: as `srattn.bench.results.read` returns them; before and after.
        limit: the part by which a row may be slower, beside what the quartiles of both explain.
        across: also where the machines differ.

    Raises:
        SrattnError: results of different kinds, or of different machines or numbers of threads.
    """
    if a["kind"] != b["kind"]:
        raise SrattnError(f"the results are of different kinds: {a['kind']} and {b['kind']}")
    apart = [f"{key} {a['machine'].get(key)} and {b['machine'].get(key)}" for key in _differences(a, b)]
    if apart and not across:
        raise SrattnError(f"the machines differ ({'; '.join(apart)}); --across compares them all the same")
    keys = KINDS[a["kind"]].keys
    left, right = ({_key(row, keys): row for row in result["rows"]} for result in (a, b))
    return [_change(left.get(key), right.get(key), keys, limit) for key in dict.fromkeys([*left, *right])]


def parse_limit(text: str) -> float:
    """ "5%" or "0.05" as 0.05.

    Raises:
        SrattnError: anything else, or a negative number.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(%?)", text.strip())
    if found is None:
        raise SrattnError(f"--limit is a part such as 5% or 0.05, got {text!r}")
    return float(found[1]) / (100.0 if found[2] else 1.0)


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [key for key in _MACHINE if a["machine"].get(key) != b["machine"].get(key)]


def _key(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return json.dumps([row[key] for key in keys])


def _change(
    old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, keys: tuple[str, ...], limit: float
) -> Change:
    some = old if old is not None else new
    assert some is not None
    label = " ".join(_word(some[key]) for key in keys)
    times = [None if row is None else row.get("seconds") for row in (old, new)]
    memory = [None if row is None else row.get("peak_bytes") for row in (old, new)]
    grown = memory[1] / memory[0] if memory[0] and memory[1] is not None else None
    reason = "" if new is None else new.get("reason") or ""
    before, after = (None if t is None else t["median"] for t in times)
    if before is None or after is None:
        verdict: Verdict = "none" if before is after else "lost" if after is None else "new"
        return Change(label, before, after, None, 0.0, grown, verdict, reason or ("" if new else "not in the second"))
    spread = sum((t["q3"] - t["q1"]) / (2 * t["median"]) for t in times if t is not None)
    ratio = after / before
    bound = 1 + limit + spread
    verdict = "slower" if ratio > bound else "faster" if ratio < 1 / bound else "same"
    return Change(label, before, after, ratio, spread, grown, verdict, reason)


def _word(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
