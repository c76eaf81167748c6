"""Our own layout: one for all families. Its vocabulary is that of the official tables, so it cannot drift."""

from __future__ import annotations

from srattn.convert.layouts.base import Layout
from srattn.convert.layouts.keys import Rule, same
from srattn.convert.layouts.official import OFFICIAL


def _identity(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    patterns = dict.fromkeys(pattern.removesuffix("?") for rule in rules for pattern in rule.ours)
    return tuple(same(pattern, pattern) for pattern in patterns)


# The epsilons and the edge policy are the model's own and stand in the file's metadata; these are for files without.
SRATTN = Layout(
    "srattn", "srattn's own", {family: _identity(rules) for family, rules in OFFICIAL.rules.items()}, edge="pad"
)
