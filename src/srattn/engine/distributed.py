"""Several processes as one: torch's own DDP and fully_shard, started by torchrun.

    torchrun --nproc-per-node 4 -m srattn train --data photos/ --distributed fsdp

On a GPU tensors travel by NCCL, on a CPU and for bookkeeping by Gloo. A step sees the same images whatever the number
of processes, and its loss is the mean over all of them. Two things depend on the number: dropout and stochastic depth
draw from (seed, step, process), and on a CPU a batch norm takes the statistics of its process's part (on GPUs
nn.SyncBatchNorm takes those of all).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from srattn.engine.device import pick_device
from srattn.errors import SrattnError
from srattn.layers.batch_norm import convert_sync_batchnorm

Kind = Literal["one", "ddp", "fsdp"]


@dataclasses.dataclass(frozen=True)
class World:
    """The processes of a run; one, unless `join` found more.

    Attributes:
        group, writing: Gloo groups for what lies in main memory, and for checkpoints that are written meanwhile.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    kind: Kind = "one"
    group: Any = None
    writing: Any = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; on the device that the tensor is on."""
        if self.size > 1:
            torch.distributed.all_reduce(values, group=self.group if values.device.type == "cpu" else None)
        return values

    def tell(self, value: Any) -> Any:
        """Plain values of the first process, in all."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def exchange(self, value: Any) -> list[Any]:
        """Plain values of every process, in all."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def gather(self, rows: Tensor) -> list[Tensor]:
        """In the first process what each has, (N_r, ...) in main memory; in the others nothing."""
        if self.size == 1:
            return [rows]
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        torch.distributed.all_gather(counts, torch.tensor([len(rows)]), group=self.group)
        most = max(int(count) for count in counts)
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.first else None
        torch.distributed.gather(padded, parts, dst=0, group=self.group)
        return [part[: int(count)] for part, count in zip(parts or [], counts, strict=False)]

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])).item())


@contextlib.contextmanager
def join(kind: str, device: str, *, resuming: bool = False) -> Iterator[World]:
    """The processes that torchrun started, or this one alone; left again when the block ends.

    Args:
        kind: "auto", "ddp" or "fsdp".
        device: as `pick_device` takes it; "auto" and "cuda" give each process of a machine a GPU of its own.

    Raises:
        SrattnError: "ddp" or "fsdp" without torchrun (unless resuming), or more processes than GPUs.
    """
    import torch.distributed as dist

    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        if kind != "auto" and not resuming and "RANK" not in os.environ:
            raise SrattnError(
                f"distributed {kind} is started by torchrun: torchrun --nproc-per-node N -m srattn train ..."
            )
        yield World(pick_device(device))
        return
    place = _place_of(device)
    ours = not dist.is_initialized()
    if ours:
        on_gpu = place.type == "cuda"
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", device_id=place if on_gpu else None)
    try:
        yield World(
            place,
            rank=dist.get_rank(),
            size=dist.get_world_size(),
            kind="fsdp" if kind == "fsdp" else "ddp",
            group=dist.new_group(backend="gloo"),
            writing=dist.new_group(backend="gloo"),
        )
    finally:
        if ours:
            dist.destroy_process_group()


def _place_of(device: str) -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device not in ("auto", "cuda") or (device == "auto" and not torch.cuda.is_available()):
        return pick_device(device)
    if local >= torch.cuda.device_count():
        raise SrattnError(
            f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} there): "
            f"give torchrun as many processes as GPUs, or --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def spread(model: nn.Module, world: World) -> nn.Module:
    """What a step calls: the model itself, its DDP wrapper, or the model with its weights divided in place."""
    if world.kind == "one":
        return model
    if world.kind == "fsdp":
        return _divided(model, world)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")  # costs one small copy
    place = [world.device.index] if world.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=place, gradient_as_bucket_view=True)


def _divided(model: nn.Module, world: World) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for stage in getattr(model, "stages", ()):
        for block in stage.blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def with_common_norms(model: nn.Module, world: World) -> nn.Module:
    """Batch norms over the images of all processes, where torch has them (on GPUs)."""
    if world.size > 1 and world.device.type == "cuda":
        return convert_sync_batchnorm(model)
    return model


@torch.no_grad()
def share_buffers(model: nn.Module, world: World) -> None:
    """Gives all processes the first one's running statistics of batch norms; to be called in all.

    On a CPU each has its own, of its part of the images: measured and kept are those of the first.
    """
    own = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if world.size == 1 or not own:
        return
    flat = torch.cat([buffer.flatten() for buffer in own])
    torch.distributed.broadcast(flat, src=0, group=world.group if flat.device.type == "cpu" else None)
    for buffer, values in zip(own, flat.split([buffer.numel() for buffer in own]), strict=True):
        buffer.copy_(values.view_as(buffer))


@contextlib.contextmanager
def gradients_meet(runner: nn.Module, meet: bool) -> Iterator[None]:
    """Backward passes within exchange gradients only if `meet`: of several parts of a step, the last."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(runner, FSDPModule):
        runner.set_requires_gradient_sync(meet)
        yield
    elif isinstance(runner, nn.parallel.DistributedDataParallel) and not meet:
        with runner.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor in main memory, put together from its parts; to be called in all processes."""
    full = getattr(tensor, "full_tensor", None)
    return (tensor if full is None else full()).detach().cpu()
