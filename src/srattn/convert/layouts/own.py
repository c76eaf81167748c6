"""Our own layout: one for all families. Its vocabulary is that of the foreign tables, so it cannot drift.

What stands beside a backbone has no table: whatever begins with `neck.` or `head.` belongs to a whole model.
"""

from __future__ import annotations

from srattn.convert.layouts.base import Layout
from srattn.convert.layouts.keys import Rule, same
from srattn.convert.layouts.official import OFFICIAL
from srattn.convert.layouts.timm import TIMM


def _identity(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    patterns = dict.fromkeys(pattern.removesuffix("?") for rule in rules for pattern in rule.ours)
    return tuple(same(pattern, pattern) for pattern in patterns)


# timm's tables name the families that have no table of the official code.
_TABLES = {**OFFICIAL.rules, **{family: rules for family, rules in TIMM.rules.items() if family not in OFFICIAL.rules}}

# What no published model has, and so no foreign layout a place for.
_PAIRS = tuple(
    f"stages.0.patch_embed.{place}.{{n}}.{layer}.{part}.{{p}}"
    for place in ("stem", "convs")
    for layer in ("first", "second")
    for part in ("conv", "norm")
)
_UNPUBLISHED = {"cmt": tuple(same(pattern, pattern) for pattern in _PAIRS)}

# The epsilons and the edge policy are the model's own and stand in the file's metadata; these are for files without.
SRATTN = Layout(
    "srattn",
    "srattn's own",
    {family: _identity(rules) + _UNPUBLISHED.get(family, ()) for family, rules in _TABLES.items()},
    edge="pad",
    parts=("neck.", "head."),
)
