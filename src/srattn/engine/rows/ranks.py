"""The processes of one torchrun, for work that needs no more of each other than to know when it is done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from srattn.errors import SrattnError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE = 1800.0
"""Seconds without a new part after which rank 0 gives the others up."""
_LOOK = 0.2


class Ranks:
    """`rank` of `world`; alone where torchrun did not start this process.

    Raises:
        SrattnError: the environment variables of torchrun are there but do not make sense.
    """

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0) -> None:
        if not 0 <= rank < world:
            raise SrattnError(f"RANK must be from 0 to WORLD_SIZE - 1, got {rank} of {world}")
        self.rank, self.world, self.local = rank, world, local
        self._store: Store | None = None

    @classmethod
    def of_torchrun(cls) -> Ranks:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return cls()
        try:
            numbers = [int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        except ValueError:
            raise SrattnError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers") from None
        return cls(*numbers)

    def tell(self, key: str, text: str) -> None:
        """Leaves a word for the others; nothing where there are none."""
        if self.world > 1:
            self._rendezvous().set(f"srattn/{key}", text)

    def ask(self, key: str) -> str:
        """Waits for a word of rank 0.

        Raises:
            SrattnError: rank 0 failed, or said nothing for `PATIENCE`.
        """
        began = time.monotonic()
        while not self._has(key):
            if self._has("failed 0"):
                raise SrattnError(f"rank 0 failed: {self._word('failed 0')}")
            if time.monotonic() - began > PATIENCE:
                raise SrattnError(f"rank 0 has said nothing for {PATIENCE:.0f} seconds")
            time.sleep(_LOOK)
        return self._word(key)

    def fail(self, error: BaseException) -> None:
        """Tells the others why this rank stops; never hides the error itself."""
        try:
            self.tell(f"failed {self.rank}", " ".join(str(error).split())[:500] or type(error).__name__)
        except Exception:  # the store may be gone with another rank
            return

    def wait_for_all(self, progress: Callable[[], int]) -> None:
        """Rank 0: until every other rank is done; `progress` counts what they have left so far.

        Raises:
            SrattnError: a rank failed, or nothing new came for `PATIENCE`.
        """
        waiting = set(range(1, self.world))
        seen, since = progress(), time.monotonic()
        while waiting:
            for rank in sorted(waiting):
                if self._has(f"failed {rank}"):
                    raise SrattnError(f"rank {rank} failed: {self._word(f'failed {rank}')}")
                if self._has(f"done {rank}"):
                    waiting.discard(rank)
            if (now := progress()) != seen:
                seen, since = now, time.monotonic()
            if waiting and time.monotonic() - since > PATIENCE:
                raise SrattnError(
                    f"rank {min(waiting)} has written nothing for {PATIENCE:.0f} seconds; its parts can be finished by "
                    "the same command in one process"
                )
            if waiting:
                time.sleep(_LOOK)

    def _has(self, key: str) -> bool:
        return self.world > 1 and self._rendezvous().check([f"srattn/{key}"])

    def _word(self, key: str) -> str:
        return self._rendezvous().get(f"srattn/{key}").decode()

    def _rendezvous(self) -> Store:
        if self._store is None:
            from torch.distributed.rendezvous import rendezvous

            try:
                self._store = next(iter(rendezvous("env://")))[0]
            except (ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise SrattnError(f"the processes of torchrun cannot reach each other: {reason}") from None
        return self._store


def check_alone(verb: str, how: str = "") -> None:
    """Refuses to be one of several processes that would each do the whole work and write the same files.

    Args:
        how: what of the verb is meant, where not all of it.

    Raises:
        SrattnError: torchrun started more than one.
    """
    world = Ranks.of_torchrun().world
    if world > 1:
        raise SrattnError(
            f"srattn {verb}{how and f' {how}'} is the work of one process, and there are {world} (by WORLD_SIZE, as "
            f"torchrun sets it): start it without torchrun; srattn train, and predict and embed into Parquet, share it"
        )
