"""How many images fit in a training step, and how many a second are computed at which size of batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from srattn.data.columns import Columns
from srattn.data.dense import JointAugment
from srattn.data.reader import is_built_in, open_data
from srattn.engine.batch_probe import Child, CudaProbe, Probe, Trial
from srattn.engine.config import ResolvedConfig, TrainConfig, to_dict
from srattn.engine.defaults import resolve
from srattn.engine.device import pick_device
from srattn.engine.read import find_scenes, make_augment
from srattn.errors import SrattnError
from srattn.tasks.models import targets_of

_PART_OF_FREE = 0.8  # of the memory that is free now is taken without being told
_GAIN = 0.02  # a larger batch must be faster by this part to be recommended

Notify = Callable[[Trial], None]


@dataclasses.dataclass(frozen=True)
class BatchSearch:
    """The result of `batch_size_search`.

    Attributes:
        trials: what was measured, by size of batch.
        recommended: the fastest of them; of nearly equal ones (2 %) the smallest.
        largest: the largest batch that stays below `limit`, in images.
        measured: whether `largest` was tried; else it follows from the growth of memory with the batch.
        limit: bytes.
        reason: why the search ended, in words.
        facts: device, model, size of the images.
    """

    trials: list[Trial]
    recommended: int
    largest: int
    measured: bool
    limit: int
    reason: str
    facts: dict[str, Any]


def batch_size_search(
    config: TrainConfig,
    *,
    memory_gb: float | None = None,
    first: int = 8,
    most: int = 4096,
    seconds: float = 10.0,
    classes: int | None = None,
    notify: Notify | None = None,
) -> BatchSearch:
    """Times training steps on made-up images, the batch doubled from step to step.

    On CUDA a batch that does not fit is met and survived, and the largest one that does is found by halving. On a CPU
    nothing is filled: the steps run in a process of their own, whose peak is measured; a batch is only tried if the
    growth so far says that it stays below the limit, and what lies beyond is extrapolated from that growth.

    Args:
        memory_gb: the limit in GB (10^9 bytes) for model, optimiser and step; 0.8 of the free memory by default.
        first, most: the smallest and the largest batch to try.
        seconds: no larger batch is tried whose step would take longer than this.
        classes: outputs of the model; those of the data by default.
        notify: told each trial.

    Raises:
        SrattnError: numbers out of range, what `train` would refuse, or not even `first` images fit.
    """
    if first < 1 or most < first:
        raise SrattnError(f"the batches must be 1 <= first <= most, got {first} and {most}")
    if memory_gb is not None and not memory_gb > 0:
        raise SrattnError(f"memory must be above 0 GB, got {memory_gb}")
    resolved = resolve(config)
    device = pick_device(resolved.device)
    free = free_memory(device)
    limit = int(_PART_OF_FREE * free) if memory_gb is None else int(min(memory_gb * 1e9, 0.95 * free))
    outputs = count_classes(resolved) if classes is None else classes
    on_gpu = device.type == "cuda"
    job = {"config": to_dict(resolved), "classes": outputs}
    with CudaProbe(job) if on_gpu else Child(job) as probe:
        found = search(probe, limit, first, most, seconds, careful=not on_gpu, notify=notify)
    facts = {"device": str(device), "model": resolved.model, "size": resolved.size, "precision": resolved.precision}
    return dataclasses.replace(found, facts=facts)


def search(
    probe: Probe, limit: int, first: int, most: int, seconds: float, *, careful: bool, notify: Notify | None = None
) -> BatchSearch:
    """Doubles the batch while it fits.

    Args:
        probe: a trial of a batch; None where it did not fit.
        limit: bytes.
        careful: never try what may not fit, and extrapolate; else try, and halve the gap between the last that fitted
            and the first that did not.
    """
    trials: list[Trial] = []
    failed: int | None = None
    batch, reason = first, f"{most} images are the most that were to be tried"
    while batch <= most:
        expected = predicted(trials, batch)
        if len(trials) >= 2 and expected > limit:
            reason = f"{batch} images would need about {expected / 1e9:.2f} GB of the {limit / 1e9:.2f} GB allowed"
            failed = batch
            break
        if trials and trials[-1].seconds * batch / trials[-1].batch > seconds:
            reason = f"a step with {batch} images would take longer than {seconds:g} seconds"
            break
        trial = probe(batch)
        if trial is None or trial.peak > limit:
            needed = "more than there is" if trial is None else f"{trial.peak / 1e9:.2f} GB"
            reason = f"{batch} images need {needed}, of the {limit / 1e9:.2f} GB allowed"
            failed = batch
            break
        trials.append(trial)
        if notify:
            notify(trial)
        batch *= 2
    if not trials:
        raise SrattnError(
            f"{reason}: not even the smallest batch of {first} fits; lower --size or take a smaller model"
        )
    if failed is not None and not careful:
        _halve(probe, trials, failed, limit, notify)
    measured = trials[-1].batch
    fits = measured
    if careful and len(trials) >= 2:
        fits = max(measured, _extrapolated(trials, limit, most))
    fastest = max(trial.images_per_second for trial in trials)
    good = [trial.batch for trial in trials if trial.images_per_second >= (1 - _GAIN) * fastest]
    return BatchSearch(trials, min(good), fits, fits == measured, limit, reason, {})


def predicted(trials: list[Trial], batch: int) -> float:
    """Bytes that a batch needs: from the last trial on, along the steepest growth that was seen."""
    if len(trials) < 2:
        return 0.0
    return trials[-1].peak + _growth(trials) * (batch - trials[-1].batch)


def _growth(trials: list[Trial]) -> float:
    """Bytes an image, the most between any two neighbouring trials."""
    pairs = itertools.pairwise(trials)
    return max(1.0, *((b.peak - a.peak) / (b.batch - a.batch) for a, b in pairs))


def _extrapolated(trials: list[Trial], limit: int, most: int) -> int:
    """The largest batch below `limit` by the growth so far; a multiple of 8 where that is many."""
    fits = trials[-1].batch + math.floor((limit - trials[-1].peak) / _growth(trials))
    return min(most, fits - fits % 8 if fits >= 16 else fits)


def _halve(probe: Probe, trials: list[Trial], failed: int, limit: int, notify: Notify | None) -> None:
    """Tries sizes between the last that fitted and the first that did not, to within an eighth."""
    low, high = trials[-1].batch, failed
    while high - low > max(1, low // 8):
        middle = (low + high) // 2
        middle -= middle % 8 if middle >= 16 and middle - middle % 8 > low else 0
        trial = probe(middle)
        if trial is None or trial.peak > limit:
            high = middle
            continue
        low = middle
        trials.append(trial)
        if notify:
            notify(trial)


def count_classes(config: ResolvedConfig) -> int:
    """The classes or joints of the data, without decoding an image; masks without a list of classes are read."""
    targets = targets_of(config.task)
    if targets == "depths":
        return 1
    augment = make_augment(config)
    if isinstance(augment, JointAugment):
        return len(find_scenes(config, augment).classes)
    columns = Columns(config.image_column, config.label_column, config.split_column)
    return 10 if is_built_in(config.data) else len(open_data(config.data, columns=columns).classes)


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken now: of the GPU, or of the machine and of the container that we are in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_meminfo(), _of_group()]
    known = [value for value in free if value is not None]
    if not known:
        raise SrattnError("this system does not say how much memory is free: give --memory")
    return min(known)


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _of_group(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves (cgroup 2); None without one."""
    try:
        most, used = (root / "memory.max").read_text().strip(), int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    if most == "max":
        return None
    # Pages of files count as used, and are given up when needed.
    try:
        lines = (line.split() for line in (root / "memory.stat").read_text().splitlines())
        used -= next((int(value) for name, value in lines if name == "inactive_file"), 0)
    except (OSError, ValueError):
        pass
    return max(0, int(most) - used)
