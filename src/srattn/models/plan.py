"""The plan of a model: which path each stage takes at a size, why, and what it costs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from srattn.errors import SrattnError
from srattn.layers.attention import HeadsPlan
from srattn.layers.block_plan import BlockPlan, Place, plan_block
from srattn.layers.mlp_kernels import BlockLike
from srattn.layers.reduction import as_pair
from srattn.models.backbone import Backbone
from srattn.models.features import PyramidFeatures
from srattn.ops import switch


@dataclass(frozen=True)
class PlanRow:
    """The attention of one stage: its blocks, its grids, the path and its counted cost for one block."""

    stage: str
    blocks: int
    tokens: tuple[int, int]
    keys: tuple[int, int]
    heads: int
    dim: int
    path: str
    macs: int
    """Multiply-adds of one block's attention, the reduction and all four projections included."""
    bytes: int
    """Bytes that one block's attention moves through memory, from the query's input to the output."""
    reason: str
    feed_forward: str = ""
    """How the feed-forward of these blocks is computed: the path, the rows in hand at a time, and why."""
    windows: int = 1
    """How many grids of `tokens` an image has, each with `keys` of its own; the counts are of all of them."""


@dataclass(frozen=True)
class Plan:
    """A row for each stage, for each kind of attention and each ratio in it; prints as a table."""

    model: str
    size: tuple[int, int]
    batch: int
    training: bool
    rows: tuple[PlanRow, ...]

    def __iter__(self) -> Iterator[PlanRow]:
        return iter(self.rows)

    def to_rows(self) -> list[dict[str, Any]]:
        """As JSON-able records."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        head = ["stage", "blocks", "tokens", "keys", "heads", "path", "MMACs", "MB", "reason"]
        body = [
            [
                row.stage,
                str(row.blocks),
                f"{row.tokens[0]}x{row.tokens[1]}" + (f" x {row.windows}" if row.windows > 1 else ""),
                f"{row.keys[0]}x{row.keys[1]}",
                str(row.heads),
                row.path,
                f"{row.macs / 1e6:.1f}",
                f"{row.bytes / 1e6:.2f}",
                row.reason,
            ]
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in [head, *body]
        ]
        mode = "training" if self.training else "inference"
        size = f"{self.size[0]}x{self.size[1]}"
        title = f"{self.model} at {size}, batch {self.batch}, {mode}: figures of one block's attention"
        halves = [f"feed-forward of stage {row.stage}: {row.feed_forward}" for row in self.rows if row.feed_forward]
        return "\n".join([title, *lines, *dict.fromkeys(halves)])


def plan(
    model: Backbone | PyramidFeatures,
    size: int | tuple[int, int] | None = None,
    *,
    batch: int = 1,
    training: bool = False,
    device: str | None = None,
) -> Plan:
    """What `forward` does in every stage for images of `size`, an int or (height, width); img_size by default.

    Nothing is computed: the choice is the one that the blocks themselves make for these shapes, in the type of the
    model's parameters and on their device (or on `device`, a type such as "cuda"). Inference is that without
    gradients, as under `torch.inference_mode()`: on a CPU it is for the compiled kernels, where they can run.
    """
    backbone = model.model if isinstance(model, PyramidFeatures) else model
    if backbone.dimensions != 2:
        raise SrattnError(f"plans are of models of images, {backbone.config['name']} takes volumes")
    size = as_pair(backbone.img_size if size is None else size, "size")
    probe = torch.empty(batch, backbone.in_chans, *size, device="meta")
    backbone.check_images(probe)
    where = device or next(backbone.parameters()).device.type
    grid, rows = size, []
    for index, stage in enumerate(backbone.iter_stages()):
        tokens = stage.patch_embed.size(*grid)
        found_blocks = [module for module in stage.modules() if isinstance(module, BlockLike)]
        blocks = {part: block for block in found_blocks for part in block.attn.modules()}
        kinds: Counter[PlanRow] = Counter()
        for found in backbone.attended(index, tokens):
            parts = found.attn.plan_heads(*found.tokens, batch * found.copies, training=training, device=device)
            block = blocks.get(found.attn)
            place = Place(backbone.tokens_of(index, tokens), found.tokens, found.copies)
            planned = None if block is None else plan_block(block, place, batch, training, where, parts)
            for part in parts:
                kinds[_row(f"{index + 1}", found.tokens, found.copies, part, planned)] += 1
        rows += [replace(row, blocks=count) for row, count in kinds.items()]
        grid = stage.size(*grid)
    return Plan(backbone.config["name"], size, batch, training, tuple(rows))


def _row(stage: str, tokens: tuple[int, int], copies: int, part: HeadsPlan, planned: BlockPlan | None) -> PlanRow:
    choice, shared = part.choice, part.shared
    path, macs, moved, reason = choice.path, choice.cost.macs, choice.cost.bytes, choice.reason
    if planned is not None and planned.attention is not None:
        path, macs, moved, reason = planned.attention
    elif switch.is_off() and switch.OFF not in reason:
        reason = f"kernels {switch.OFF}; {reason}"
    feed_forward = "" if planned is None else planned.feed_forward
    return PlanRow(
        stage, 1, tokens, part.keys, part.heads, part.dim, path, macs + shared, moved, reason, feed_forward, copies
    )
