"""What a layout is: its rules by family and the conventions of the code that wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from srattn.convert.layouts.keys import Rule, State

# Layer norm epsilons: of the blocks and stages, after a reduction, after a patch embedding.
PUBLISHED_EPS = {"block": 1e-6, "reduction": 1e-5, "patch": 1e-5}
UNIFORM_EPS = {"block": 1e-6, "reduction": 1e-6, "patch": 1e-6}
TORCH_EPS = {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}


@dataclass(frozen=True)
class Layout:
    """A foreign state-dict layout.

    rules: family -> its table.
    norm_eps: the epsilons that its code applies; edge: its edge policy (all published code floors).
    family_eps: the epsilons of families that its code treats otherwise.
    aliases: (prefix found, prefix meant) for the same layout saved from another class.
    lacks: beginnings of our keys that the layout has no place for (a backbone without a classifier).
    auxiliary: beginnings of keys that belong to other parts of a saved model, which are left alone.
    refuses: given our state, why it cannot be written in this layout, or None.
    heads: family -> kind of head -> the table of a head that whole models have beside this backbone.
    beside_head: (family, kind of head) -> the table of the backbone in such a model, where it has another.
    prefix: what the backbone's keys begin with in a whole model.
    parts: beginnings of the keys of what stands beside a backbone, where they are ours and need no table.
    """

    name: str
    title: str
    rules: Mapping[str, tuple[Rule, ...]]
    norm_eps: Mapping[str, float] = field(default_factory=lambda: dict(PUBLISHED_EPS))
    family_eps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    edge: str = "floor"
    aliases: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    refuses: Callable[[State], str | None] = lambda state: None
    heads: Mapping[str, Mapping[str, tuple[Rule, ...]]] = field(default_factory=dict)
    beside_head: Mapping[tuple[str, str], tuple[Rule, ...]] = field(default_factory=dict)
    prefix: str = "backbone."
    parts: tuple[str, ...] = ()

    def eps_of(self, family: str) -> dict[str, float]:
        """The epsilons that its code applies in models of `family`."""
        return dict(self.family_eps.get(family, self.norm_eps))

    def has_no_place_for(self, key: str) -> bool:
        """Whether one of our keys cannot be held by this layout."""
        return any(key == part or key.startswith(part + ".") for part in self.lacks)
