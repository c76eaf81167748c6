"""Whether all processes of a run were told the same and have read the same: each reads by itself, perhaps from a disk
of its own machine."""

from __future__ import annotations

import hashlib
import socket
from array import array
from collections.abc import Sequence

from srattn.data.samples import ImageData, Samples, root_of
from srattn.data.sources import size_in
from srattn.engine.config import OF_THE_MACHINE, OF_THE_PLACE, ResolvedConfig, to_dict
from srattn.engine.distributed import World
from srattn.errors import SrattnError

# What may lie elsewhere on each machine, and what says where a process computes but not how they do it together.
_ITS_OWN = {*OF_THE_MACHINE, *OF_THE_PLACE, "init", "distill", "out", "resume"} - {"distributed"}
_MOST = 4  # processes that a message names


def check_options(config: ResolvedConfig, world: World) -> None:
    """Refuses processes that were started with unlike options, whose steps would not be those of one run.

    Raises:
        SrattnError: in all processes.
    """
    if world.size == 1:
        return
    own = {name: value for name, value in to_dict(config).items() if name not in _ITS_OWN}
    found = world.exchange((own, socket.gethostname()))
    first, hosts = found[0][0], [host for _, host in found]
    unlike = [rank for rank, (theirs, _) in enumerate(found) if theirs != first]
    if unlike:
        theirs = found[unlike[0]][0]
        name = next(name for name in first if theirs.get(name) != first[name])
        raise SrattnError(
            f"{_named(unlike[0], hosts)} was not started with the options of the first: {name} is "
            f"{theirs.get(name)!r}, not {first[name]!r}{_others(unlike[1:], hosts)}; start all processes with the same "
            f"options and the same --config"
        )


def check_data(data: ImageData, source: str, world: World) -> None:
    """Refuses data that another process has read otherwise: other counts, names, labels, targets or contents of files.

    Raises:
        SrattnError: in all processes.
    """
    if world.size == 1:
        return
    counts = f"{len(data.train)} images for training, {len(data.val)} held out, {len(data.classes)} classes"
    # A list of absolute paths may have another folder before them on each machine.
    facts = {
        "": counts,
        ", by other names or labels": [data.rootless() or data.fingerprint(), *data.classes],
        ", with other targets": getattr(data, "facts", ""),
        ", with other contents": data.contents(),
    }
    found = world.exchange((facts, data.skipped[:1], socket.gethostname()))
    first, hosts = found[0][0], [host for *_, host in found]
    unlike = [rank for rank, (theirs, *_) in enumerate(found) if theirs != first]
    if not unlike:
        return
    told = _first_difference(data, unlike[0], world)
    theirs = found[unlike[0]][0]
    what = next(words for words in facts if theirs[words] != first[words])
    skipped = [*found[unlike[0]][1], *found[0][1]]
    reason = f" (left out: {skipped[0]})" if skipped else ""
    raise SrattnError(
        f"{source} is not the same for all processes: the first has {first['']}; {_named(unlike[0], hosts)} has "
        f"{theirs['']}{what}{reason}{told}{_others(unlike[1:], hosts)}; give all of them the same files"
    )


def _named(rank: int, hosts: Sequence[str]) -> str:
    """A process, and its machine where there are several."""
    return f"process {rank}" + (f" on {hosts[rank]}" if len(set(hosts)) > 1 else "")


def _others(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """Those that differ from the first beside one that is told of."""
    if not ranks:
        return ""
    rest = f" and {len(ranks) - _MOST} more" if len(ranks) > _MOST else ""
    return f"; so differ {', '.join(_named(rank, hosts) for rank in ranks[:_MOST])}{rest}"


def _first_difference(data: ImageData, rank: int, world: World) -> str:
    """The first image that process `rank` has otherwise than the first process; to be called in all processes."""
    root = root_of([*data.train.names, *data.val.names])
    for where, part in (("for training", data.train), ("held out", data.val)):
        own = _digests(part, len(root))
        theirs = array("Q", world.tell(own.tobytes()))
        place = next(
            (n for n, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs))
        )
        place = world.exchange(place if place < max(len(own), len(theirs)) else None)[rank]
        if place is not None:
            said = world.exchange(_described(part, place, data.classes, len(root)))
            return f"; of those {where} number {place + 1} is {said[0]} in the first, {said[rank]} in process {rank}"
    return ""


def _digests(part: Samples, begin: int) -> array[int]:
    """A number for each image: name, label and, where there are files, a word on their content."""
    stamps = [0] * len(part) if part.stamps is None else part.stamps.tolist()
    rows = zip(part.names, part.labels.tolist(), stamps, strict=True)
    coded = (f"{label} {stamp} {name[begin:]}".encode(errors="surrogateescape") for name, label, stamp in rows)
    return array("Q", (int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in coded))


def _described(part: Samples, place: int, classes: Sequence[str], begin: int) -> str:
    """An image as a person knows it."""
    if place >= len(part):
        return "none"
    label = int(part.labels[place])
    told = [classes[label]] if label < len(classes) and int(part.labels.max()) > 0 else []
    told += [] if part.stamps is None else [f"{size_in(int(part.stamps[place])):,} bytes"]
    name = part.names[place][begin:]
    return f"{name} ({', '.join(told)})" if told else name
