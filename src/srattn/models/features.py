"""What a backbone tells of its feature maps, and the model that returns them as a pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.models.numbers import plain

if TYPE_CHECKING:
    from srattn.models.backbone import Backbone

_KEYS = ("num_chs", "reduction", "module")


@dataclass(frozen=True)
class FeatureInfo:
    """One feature map: its channels, its stride in pixels of the image, and the module that makes it."""

    channels: int
    reduction: int
    module: str

    def __getitem__(self, key: str) -> Any:
        """By timm's keys: `num_chs`, `reduction`, `module`."""
        return {"num_chs": self.channels, "reduction": self.reduction, "module": self.module}[key]


class FeatureInfos(tuple[FeatureInfo, ...]):
    """The feature maps that a model returns, with timm's accessors.

    Each accessor answers with a list, of all maps or of those at a sequence of indices, or for one index with what
    that map has. Indices count the maps that are returned.
    """

    @property
    def info(self) -> list[dict[str, Any]]:
        """A dict of each map."""
        return self.get_dicts()

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """What stands under one of timm's keys."""
        return _at([info[key] for info in self], idx)

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Dicts of these of timm's keys, or of all."""
        return _at([{key: info[key] for key in (_KEYS if keys is None else keys)} for info in self], idx)

    @overload
    def channels(self, idx: Sequence[int] | None = None) -> list[int]: ...
    @overload
    def channels(self, idx: int) -> int: ...
    def channels(self, idx: int | Sequence[int] | None = None) -> list[int] | int:
        return self.get("num_chs", idx)

    @overload
    def reduction(self, idx: Sequence[int] | None = None) -> list[int]: ...
    @overload
    def reduction(self, idx: int) -> int: ...
    def reduction(self, idx: int | Sequence[int] | None = None) -> list[int] | int:
        return self.get("reduction", idx)

    @overload
    def module_name(self, idx: Sequence[int] | None = None) -> list[str]: ...
    @overload
    def module_name(self, idx: int) -> str: ...
    def module_name(self, idx: int | Sequence[int] | None = None) -> list[str] | str:
        return self.get("module", idx)


def _at(values: list[Any], idx: int | Sequence[int] | None) -> Any:
    if idx is None:
        return values
    return [values[i] for i in idx] if isinstance(idx, Sequence) else values[idx]


def resolve_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Stages asked for as positive indices: None is all, an int n is the last n, negative ones count from the end."""
    indices = plain(indices)
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise SrattnError(f"the last {indices} of {count} feature maps: choose 1 to {count}")
        return list(range(count - indices, count))
    resolved = [i + count if i < 0 else i for i in indices]
    if not resolved or any(not 0 <= i < count for i in resolved):
        raise SrattnError(
            f"feature maps {list(indices)} of a model with {count} stages: indices are {-count} to {count - 1}"
        )
    return resolved


class PyramidFeatures(nn.Module):
    """A backbone whose forward returns its feature maps, a list of (B, C, H, W), finest first.

    Stages after the last one asked for are removed, and so is the head. `feature_info` describes what is returned.
    """

    def __init__(self, model: "Backbone", out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = resolve_indices(out_indices, len(model.stages))
        self.feature_info = FeatureInfos(model.feature_info[i] for i in self.out_indices)
        model.prune_stages(max(self.out_indices) + 1)
        self.model = model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Images (B, in_chans, H, W) to maps; `mask` (B, H, W) is that of padded images, see `Backbone.forward`."""
        return self.model.forward_intermediates(x, indices=self.out_indices, intermediates_only=True, mask=mask)

    def reduce_mask(self, mask: Tensor) -> list[Tensor]:
        """Which tokens of each map have a valid pixel, (B, H', W'), for the valid pixels (B, H, W)."""
        masks = self.model.reduce_mask(mask)
        return [masks[i] for i in self.out_indices]

    @property
    def config(self) -> dict[str, Any]:
        return {**self.model.config, "features_only": True, "out_indices": list(self.out_indices)}

    # -- the backbone's own answers, with the names that parameters have here ----------------------------------------

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)

    def set_memory(self, memory: str) -> None:
        self.model.set_memory(memory)

    def set_edge(self, edge: str) -> None:
        self.model.set_edge(edge)

    def set_norm_eps(
        self, block: float | None = None, reduction: float | None = None, patch: float | None = None
    ) -> None:
        self.model.set_norm_eps(block, reduction, patch)

    def no_weight_decay(self) -> set[str]:
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return groups_below("model", self.model.group_matcher(coarse))


def groups_below(prefix: str, groups: dict[str, Any]) -> dict[str, Any]:
    """A backbone's `group_matcher` for a model that holds the backbone under this name."""

    def below(pattern: str) -> str:
        return pattern.replace("^", rf"^{prefix}\.")  # each alternative is anchored

    blocks = groups["blocks"]
    named = below(blocks) if isinstance(blocks, str) else [(below(p), suffix) for p, suffix in blocks]
    return {"stem": below(groups["stem"]), "blocks": named}
