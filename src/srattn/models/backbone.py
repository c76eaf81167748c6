"""What every backbone answers: features, intermediates, head, and the settings that conversions need.

A family composes stages and implements `run_stage` (and `pool`, where it does not end in a mean over the map).
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError
from srattn.layers.attention import MapAttention
from srattn.layers.block import Blocks
from srattn.layers.patch_embed import Embedding
from srattn.layers.recompute import recomputed
from srattn.layers.reduction import check_edge
from srattn.models.features import FeatureInfo, FeatureInfos, resolve_indices
from srattn.models.initialise import init_weights
from srattn.models.memory import set_memory
from srattn.models.numbers import whole
from srattn.ops.reduce import cleared
from srattn.ops.tracing import is_exporting


class Attended(NamedTuple):
    """One attention of a stage: the grid of tokens that it sees, and how many such grids an image has (windows)."""

    attn: MapAttention
    tokens: tuple[int, int]
    copies: int = 1


class Stage(nn.Module):
    """Patch embedding, optional positions, blocks, optional norm. Tokens inside are (B, H, W, C)."""

    def __init__(
        self,
        patch_embed: Embedding,
        blocks: Sequence[nn.Module],
        norm: nn.Module | None = None,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.position = nn.Identity() if position is None else position
        self.blocks = Blocks(blocks)
        self.norm = nn.Identity() if norm is None else norm
        self.grad_checkpointing = False
        self.lean = False

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W) to tokens (B, H', W', C) with their positions; `mask` (B, H', W') says which are valid."""
        tokens = self.patch_embed(x)
        if mask is None or isinstance(self.position, nn.Identity):
            return self.position(tokens)
        return self.position(tokens, mask)

    def run(self, tokens: Tensor, *context: Any, mask: Tensor | None = None) -> Tensor:
        """The blocks (with what else their forward takes) and the norm on (B, H, W, C).

        Tokens come out as zero where a mask (B, H, W) is false, which the blocks take too.
        """
        if mask is None and not torch.is_grad_enabled():
            return self.norm(self.blocks(tokens, *context))
        context = context if mask is None else (*context, mask)
        for block in self.blocks:
            tokens = self.run_block(block, tokens, *context)
        return cleared(self.norm(tokens), mask)

    def run_block(self, block: nn.Module, tokens: Tensor, *context: Any) -> Tensor:
        """One block (with what else its forward takes), computed again in backward under gradient checkpointing."""
        if (self.grad_checkpointing or self.lean) and torch.is_grad_enabled() and not is_exporting():
            return recomputed(block, tokens, *context)
        return block(tokens, *context)

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Grid of the stage's map for an input of (height, width); that of its embedding, unless blocks change it."""
        return self.patch_embed.size(height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to a map (B, C, H', W'), a view of channels-last tokens."""
        return self.run(self.embed(x)).movedim(-1, 1)

    def forward_masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, of what is zero where it is not valid; `mask` (B, H', W') is of the stage's own tokens."""
        return self.run(self.embed(x, mask), mask=mask).movedim(-1, 1)


def beside_token(mask: Tensor) -> Tensor:
    """A mask (B, H, W) for tokens in one row behind a class token, which is valid: (B, 1 + H W)."""
    return torch.cat([mask.new_ones(mask.shape[0], 1), mask.flatten(1)], 1)


class Backbone(nn.Module):
    """Base of all families. Images are (batch, in_chans, height, width) in any memory format.

    Attributes:
        config: a JSON-able dict; `srattn.create_model(**model.config)` builds the same architecture.
        feature_info: channels and reduction of each stage's map.
        num_features: channels of the last stage.
        head_hidden_size: channels of what the head reads; `num_features`, unless the family widens it.
        min_size: smallest height or width in pixels, the stride of the last stage.
        memory: "fast" or "lean", see `set_memory`.
    """

    memory: str = "fast"
    stages: nn.ModuleList
    norm: nn.Module
    config: dict[str, Any]
    img_size: int | tuple[int, int]
    features_defaults: ClassVar[dict[str, Any]] = {}
    """Arguments that a feature pyramid of this family takes by default."""
    dimensions: ClassVar[int] = 2
    """2 for images, 3 for volumes."""
    formats: ClassVar[tuple[str, str]] = ("NCHW", "NHWC")
    """What `output_fmt` may be, the default first."""
    published_eps: ClassVar[dict[str, float]] = {"block": 1e-6, "reduction": 1e-5, "patch": 1e-5}
    """Epsilons of the norms in the official code."""

    def _finish_init(
        self,
        embed_dims: Sequence[int],
        strides: Sequence[int],
        *,
        in_chans: int,
        num_classes: int,
        drop_rate: float,
        edge: str,
        head_hidden_size: int | None = None,
    ) -> None:
        """Head, feature info and initialisation, once the stages stand."""
        reductions = [math.prod(strides[: i + 1]) for i in range(len(strides))]
        self.feature_info = FeatureInfos(
            FeatureInfo(dim, r, f"stages.{i}") for i, (dim, r) in enumerate(zip(embed_dims, reductions, strict=True))
        )
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dims[-1]
        self.min_size = reductions[-1]
        self.edge = check_edge(edge)
        self.head_drop = nn.Dropout(drop_rate)
        self.head_hidden_size = self.num_features if head_hidden_size is None else head_hidden_size
        self.head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        self.apply(init_weights)

    # -- forward ----------------------------------------------------------------------------------------------------

    def run_stage(self, index: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """One stage on (B, C_in, H, W): its map (B, C, H', W'), and the class token (B, C) where it carries one."""
        return self.stages[index](x), None

    def run_masked(self, index: int, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `run_stage`, of padded images; `mask` (B, H', W') is of the stage's own tokens (see `reduce_mask`)."""
        return self.iter_stages()[index].forward_masked(x, mask), None

    def reduce_mask(self, mask: Tensor) -> list[Tensor]:
        """Which tokens of each stage's map have a valid pixel, (B, H', W') bool, for the valid pixels (B, H, W).

        Raises:
            SrattnError: the mask is not boolean and of three dimensions, or the family takes none.
        """
        if (against := self.why_no_masks()) is not None:
            raise SrattnError(against)
        if mask.ndim != 3 or mask.dtype != torch.bool:
            raise SrattnError(f"mask is boolean (batch, height, width), got {mask.dtype} {tuple(mask.shape)}")
        masks: list[Tensor] = []
        for stage in self.iter_stages():
            masks.append(stage.patch_embed.reduce_mask(masks[-1] if masks else mask))
        return masks

    def why_no_masks(self) -> str | None:
        """Why the model takes no mask of padded images, in words; None where it does."""
        return f"masks of padded images are for PVT, PVT v2 and MiT, not for {type(self).__name__}: leave the mask out"

    def _begin(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Images (B, C, H, W), zero where their mask (B, H, W) is false, and the mask of each stage's tokens."""
        self.check_images(x)
        if mask is None:
            return x, [None] * len(self.stages)
        masks = self.reduce_mask(mask)
        if mask.shape != (x.shape[0], *x.shape[2:]):
            raise SrattnError(f"mask is {(x.shape[0], *x.shape[2:])} for these images, got {tuple(mask.shape)}")
        return x.masked_fill(~mask.unsqueeze(1), 0.0), masks

    def _run(self, index: int, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.run_stage(index, x) if mask is None else self.run_masked(index, x, mask)

    def tokens_of(self, index: int, grid: tuple[int, int]) -> tuple[int, int]:
        """Grid that the attention of a stage sees, for a map of `grid` tokens."""
        return grid

    def attended(self, index: int, grid: tuple[int, int]) -> list[Attended]:
        """Every attention of a stage in order of execution, for a map of `grid` tokens."""
        tokens = self.tokens_of(index, grid)
        modules = self.stages[index].modules()
        return [Attended(m, tokens) for m in modules if isinstance(m, MapAttention)]

    def final(self, x: Tensor, class_token: Tensor | None) -> Tensor:
        """What `forward_features` returns, from the last stage's map and class token."""
        return x

    def pool(self, x: Tensor) -> Tensor:
        """What the head reads, (B, C), from what `forward_features` returns."""
        return x.mean((2, 3))

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images to the final features, (B, C, H / min_size, W / min_size) unless the family says otherwise.

        `mask` (B, H, W) is true where a pixel belongs to its image, of images that were padded to one size, see
        `forward`.
        """
        x, masks = self._begin(x, mask)
        token = None
        for index, valid in enumerate(masks):
            x, token = self._run(index, x, valid)
        return self._final(x, token, masks[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False, mask: Tensor | None = None) -> Tensor:
        """Final features to logits (B, num_classes), or to the pooled features (B, C) with `pre_logits`."""
        if mask is None or self.global_pool == "token":
            x = self.pool(x)
        else:  # of what is zero where it is not valid
            x = x.sum((2, 3)) / self.reduce_mask(mask)[-1].sum((1, 2)).clamp(min=1).unsqueeze(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes); pooled features where num_classes is 0.

        Images of several sizes are padded below and to the right to one size, and `mask` (B, H, W) bool is true where
        a pixel belongs to its image. Then no image sees its padding, whatever that holds: maps are zero there, and else
        what they are for the image by itself, but for rounding. That is so at any size with the edge policy "pad", and
        with "floor" (of published weights) where heights and widths are multiples of `min_size`. PVT, PVT v2 (not
        linear) and MiT take masks; their blocks are then computed by torch's operators.
        """
        return self.forward_head(self.forward_features(x, mask), mask=mask)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str | None = None,
        intermediates_only: bool = False,
        mask: Tensor | None = None,
    ) -> Any:
        """The final features and a list of feature maps.

        Args:
            x: images (B, in_chans, H, W).
            indices: stages to return; None is all, an int n the last n, negative ones count from the end.
            norm: apply the family's final norm, where it has one, to the last stage's map (norms that belong to a
                stage are always applied).
            stop_early: do not run stages after the last one asked for; only with `intermediates_only`.
            output_fmt: "NCHW" or "NHWC" ("NCDHW" or "NDHWC" for volumes).
            intermediates_only: return the list alone.
            mask: (B, H, W), true where a pixel belongs to its image, see `forward`; `reduce_mask` has that of each map.

        Returns:
            (final features, [maps (B, C, H, W)]), or the list alone.
        """
        first, last_axis = self.formats
        if output_fmt is None:
            output_fmt = first
        if output_fmt not in self.formats:
            raise SrattnError(f"output_fmt is {first!r} or {last_axis!r}, got {output_fmt!r}")
        if stop_early and not intermediates_only:
            raise SrattnError("stop_early leaves no final features: set intermediates_only=True as well")
        x, masks = self._begin(x, mask)
        wanted, last = resolve_indices(indices, len(self.stages)), len(self.stages) - 1
        maps: dict[int, Tensor] = {}
        token = None
        for index in range(max(wanted) + 1 if intermediates_only else last + 1):
            x, token = self._run(index, x, masks[index])
            if index in wanted:
                out = x
                if norm and index == last:
                    out = cleared(self.norm(x.movedim(1, -1)), masks[index]).movedim(-1, 1)
                maps[index] = out if output_fmt == first else out.movedim(1, -1)
        ordered = [maps[i] for i in wanted]
        return ordered if intermediates_only else (self._final(x, token, masks[-1]), ordered)

    def _final(self, x: Tensor, token: Tensor | None, mask: Tensor | None) -> Tensor:
        """`final`, with zeros where the mask of the last stage's tokens is false; a class token stays what it is."""
        x = self.final(x, token)
        if mask is None:
            return x
        if token is None:
            return cleared(x.movedim(1, -1), mask).movedim(-1, 1)
        return x.masked_fill(~beside_token(mask).unsqueeze(-1), 0.0)

    def check_images(self, x: Tensor) -> None:
        """Refuses what is no batch of images of this model's channels and of at least `min_size` pixels."""
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise SrattnError(f"images are (batch, {self.in_chans}, height, width), got {tuple(x.shape)}")
        if is_exporting():
            return  # sizes may be symbols
        if x.shape[2] < self.min_size or x.shape[3] < self.min_size:
            raise SrattnError(
                f"image {x.shape[2]}x{x.shape[3]} is below the minimum of {self.min_size}x{self.min_size}: "
                f"enlarge it, or build the model with a smaller stem_stride"
            )

    # -- what users of timm expect ----------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        return self.head

    @property
    def global_pool(self) -> str:
        """What the head reads: "token", the class token where there is one, or "avg", the mean over the map."""
        return "avg" if getattr(self, "class_token", None) is None else "token"

    def check_global_pool(self, global_pool: str | None) -> None:
        """Refuses what is neither None nor what this model pools by, which is no setting."""
        if global_pool not in (None, self.global_pool):
            raise SrattnError(
                f"the model pools by {self.global_pool!r}, got global_pool={global_pool!r}: leave it out, or pool what "
                "forward_features returns"
            )

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes`; 0 removes it. `global_pool` is what the model pools by, or None."""
        self.check_global_pool(global_pool)
        like = next(self.parameters())
        self.num_classes = num_classes = whole(num_classes, "num_classes")
        self.head = (
            nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )
        self.head.apply(init_weights)
        self.config = {**self.config, "num_classes": num_classes}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone (beside biases and norms)."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth, for layer-wise learning rates: by stage if coarse, else by block."""
        return {
            "stem": r"^stages\.0\.(?!blocks|norm)|^class_",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(?!blocks|norm)", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99998,)),
                (r"^norm", (99999,)),
            ],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in backward instead of keeping its activations."""
        for stage in self.iter_stages():
            stage.grad_checkpointing = enable

    def set_memory(self, memory: str) -> None:
        """How much a training step keeps for backward; the numbers are the same.

        "fast", the default, is the quickest: on a CPU in float32 a compiled kernel that computes what is hidden in
        the feed-forwards twice, in the cache, and keeps none of it; elsewhere torch's operators, which keep it.
        "lean" never keeps it: it is computed again in backward, band by band on a CPU. Blocks with a feed-forward of
        another kind (Shunted, CMT, P2T, volumes) are then computed again as under `set_grad_checkpointing`.
        """
        set_memory(self, memory)

    def prune_stages(self, count: int) -> None:
        """Keeps the first `count` stages and no head: the feature extractor behind `features_only`."""
        self.stages = self.stages[:count]
        self.norm, self.head, self.num_classes = nn.Identity(), nn.Identity(), 0
        self.config = {**self.config, "num_classes": 0}

    # -- settings of a checkpoint's origin ---------------------------------------------------------------------------

    @property
    def norm_eps(self) -> dict[str, float]:
        """Epsilons of the norms: of blocks and stages, after reductions, after patch embeddings."""
        found: dict[str, float] = {}
        for kind, module in self._norms():
            found.setdefault(kind, module.eps)
        return self.published_eps | found

    def set_norm_eps(
        self, block: float | None = None, reduction: float | None = None, patch: float | None = None
    ) -> None:
        """Sets the epsilons, which differ by a checkpoint's origin; the defaults are those of the official code."""
        given = {"block": block, "reduction": reduction, "patch": patch}
        eps = self.published_eps | {kind: value for kind, value in given.items() if value is not None}
        for kind, module in self._norms():
            module.eps = eps[kind]

    def _norms(self) -> Iterator[tuple[str, nn.LayerNorm | nn.BatchNorm2d | nn.SyncBatchNorm]]:
        """The norms whose epsilons are settings, with their kind: layer norms, and batch norms after a reduction."""
        for name, module in self.named_modules():
            kind = _norm_kind(name)
            batch = (nn.BatchNorm2d, nn.SyncBatchNorm) if kind == "reduction" else ()
            if isinstance(module, (nn.LayerNorm, *batch)):
                yield kind, module

    def set_edge(self, edge: str) -> None:
        """Sets the edge policy of every reduction and patch embedding that has one: "pad", "floor" or "error"."""
        check_edge(edge)
        for module in self.modules():
            if hasattr(module, "edge"):
                module.edge = edge  # type: ignore[assignment]
        self.config = {**self.config, "edge": edge}

    def iter_stages(self) -> list[Stage]:
        """The stages as what they are (a ModuleList forgets)."""
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    def attentions(self) -> list[tuple[str, MapAttention]]:
        """Every attention on maps with its name, in order of execution."""
        found = {name: m for name, m in self.named_modules() if isinstance(m, MapAttention)}
        # Attention within windows holds that of one window, which is no other.
        return [(name, m) for name, m in found.items() if name.rpartition(".")[0] not in found]


def _norm_kind(name: str) -> str:
    if re.search(r"reductions?(\.\d+)?\.norm$", name):
        return "reduction"
    return "patch" if name.endswith("patch_embed.norm") else "block"
