"""What a backbone tells of its feature maps, and the model that returns them as a pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.models.numbers import plain

if TYPE_CHECKING:
    from srattn.models.backbone import Backbone


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
    """The feature maps of a model, with timm's accessors."""

    def _of(self, indices: Sequence[int] | None) -> list[FeatureInfo]:
        return list(self) if indices is None else [self[i] for i in indices]

    def channels(self, indices: Sequence[int] | None = None) -> list[int]:
        return [info.channels for info in self._of(indices)]

    def reduction(self, indices: Sequence[int] | None = None) -> list[int]:
        return [info.reduction for info in self._of(indices)]

    def module_name(self, indices: Sequence[int] | None = None) -> list[str]:
        return [info.module for info in self._of(indices)]


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

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, indices=self.out_indices, intermediates_only=True)

    @property
    def config(self) -> dict[str, Any]:
        return {**self.model.config, "features_only": True, "out_indices": list(self.out_indices)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)
