"""Key patterns and rules: one table per layout and family, applied in both directions.

A pattern is a key with named places: ``stages.{i}.blocks.{j}.attn.q.{p}``. `i` (stage), `j` (block) and `n` (any other
index) stand for a number, `p` for the last part of a parameter (weight, bias). ``{i+1}`` is counted from one,
``{n*2}`` in twos, ``{i@}`` is a letter, a for 0.
A `Rule` says which keys of ours hold the same numbers as which keys of a foreign layout, and how the tensors change.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from srattn.convert.layouts.transforms import SAME, Context, Transform
from srattn.errors import SrattnError

State = Mapping[str, torch.Tensor]
Bindings = tuple[tuple[str, str], ...]

_PLACE = re.compile(r"\{([a-z])(?:\+(\d+)|\*(\d+)|(@))?\}")
_OPTIONAL = "?"


@dataclass(frozen=True)
class Rule:
    """`ours` and `theirs`: key patterns of the same numbers; a trailing "?" marks a key that may be absent.

    beside: a key of theirs that must be there as well for their keys to be meant, where one name has two meanings.
    beside_ours: the same of ours.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform = SAME
    beside: str | None = None
    beside_ours: str | None = None


def same(
    ours: str, theirs: str, transform: Transform = SAME, beside: str | None = None, beside_ours: str | None = None
) -> Rule:
    """One key for one key."""
    return Rule((ours,), (theirs,), transform, beside, beside_ours)


def joined(ours: Sequence[str], theirs: str, transform: Transform) -> Rule:
    """Several keys of ours for one key of theirs."""
    return Rule(tuple(ours), (theirs,), transform)


@dataclass
class Applied:
    """What `apply_rules` made: the new tensors, which key each came from, and the keys that no rule knows."""

    state: dict[str, torch.Tensor]
    sources: dict[str, tuple[str, ...]]
    unknown: list[str] = field(default_factory=list)


def apply_rules(state: State, rules: Sequence[Rule], *, to_ours: bool, context: Context) -> Applied:
    """Converts every tensor of `state` from theirs to ours, or back.

    Raises:
        SrattnError: half of a joined pair is absent, two keys give the same key, or a tensor has an impossible shape.
    """
    groups: dict[tuple[int, Bindings], dict[int, str]] = {}
    unknown: list[str] = []
    for key in state:
        found = find_rule(key, rules, theirs=to_ours, keys=state)
        if found is None:
            unknown.append(key)
            continue
        number, member, bindings = found
        groups.setdefault((number, bindings), {})[member] = key

    out: dict[str, torch.Tensor] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for (number, bindings), members in groups.items():
        rule = rules[number]
        incoming, outgoing = (rule.theirs, rule.ours) if to_ours else (rule.ours, rule.theirs)
        for member, pattern in enumerate(incoming):
            if member not in members and not pattern.endswith(_OPTIONAL):
                present = next(iter(members.values()))
                raise SrattnError(f"{present!r} is present without {fill(pattern, bindings)!r}, which belongs to it")
        tensors = [state[members[m]] if m in members else None for m in range(len(incoming))]
        names = tuple(members[m] for m in sorted(members))
        move = rule.transform.read if to_ours else rule.transform.write
        try:
            results = move(tensors, dict(bindings), context)
        except SrattnError as error:
            raise SrattnError(f"{names[0]!r}: {error}") from error
        except (RuntimeError, IndexError, ValueError) as error:  # a shape that the transform was not made for
            shapes = ", ".join(f"{name!r} {tuple(state[name].shape)}" for name in names)
            raise SrattnError(f"{shapes}: no shape that {fill(outgoing[0], bindings)!r} can be made of") from error
        for pattern, tensor in zip(outgoing, results, strict=True):
            if tensor is None:
                continue
            name = fill(pattern, bindings)
            if name in out:
                raise SrattnError(f"{sources[name][0]!r} and {names[0]!r} are both {name!r}")
            out[name], sources[name] = tensor, names
    return Applied(out, sources, unknown)


def find_rule(
    key: str, rules: Sequence[Rule], *, theirs: bool, keys: Container[str]
) -> tuple[int, int, Bindings] | None:
    """The first rule with a pattern that `key` (one of `keys`) fits.

    Returns:
        The rule's number, the pattern's place in it, and the places' values.
    """
    for number, rule in enumerate(rules):
        for member, pattern in enumerate(rule.theirs if theirs else rule.ours):
            bindings = match(pattern, key)
            if bindings is None:
                continue
            beside = rule.beside if theirs else rule.beside_ours
            if beside is None or fill(beside, bindings) in keys:
                return number, member, bindings
    return None


def count_known(keys: Collection[str], rules: Sequence[Rule]) -> int:
    """How many of `keys` these rules know as theirs."""
    return sum(find_rule(key, rules, theirs=True, keys=keys) is not None for key in keys)


def match(pattern: str, key: str) -> Bindings | None:
    """The values of the pattern's places in `key`, or None where it does not fit, as ``{i+1}`` 0 and ``{n*2}`` 1."""
    regex, counting = _compiled(pattern)
    found = regex.fullmatch(key)
    if found is None:
        return None
    values = []
    for name, text in found.groupdict().items():
        if name == "p":
            values.append((name, text))
            continue
        offset, step = counting[name]
        number, rest = divmod(ord(text) - ord("a") if text.isalpha() else int(text) - offset, step)
        if number < 0 or rest:
            return None
        values.append((name, str(number)))
    return tuple(sorted(values))


def fill(pattern: str, bindings: Bindings) -> str:
    """The key that `pattern` stands for with these values."""
    values = dict(bindings)

    def value(place: re.Match[str]) -> str:
        name, offset, step = place[1], int(place[2] or 0), int(place[3] or 1)
        if place[4]:
            return chr(ord("a") + int(values[name]))
        return values[name] if name == "p" else str(int(values[name]) * step + offset)

    return _PLACE.sub(value, pattern.removesuffix(_OPTIONAL))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> tuple[re.Pattern[str], dict[str, tuple[int, int]]]:
    """The expression, and of each place what it is counted from and in steps of what."""
    text = pattern.removesuffix(_OPTIONAL)
    counting: dict[str, tuple[int, int]] = {}
    parts, end = [], 0
    for place in _PLACE.finditer(text):
        name = place[1]
        parts.append(re.escape(text[end : place.start()]))
        # At most four digits: a key is never a reason to build a huge number.
        text_of = "[a-z]" if place[4] else "[a-z_]+" if name == "p" else "[0-9]{1,4}"
        parts.append(rf"(?P<{name}>{text_of})")
        counting[name] = int(place[2] or 0), int(place[3] or 1)
        end = place.end()
    parts.append(re.escape(text[end:]))
    return re.compile("".join(parts)), counting
