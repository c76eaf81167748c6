"""What a service allows itself and its clients."""

from __future__ import annotations

import dataclasses

from srattn.data.decode import MAX_PIXELS
from srattn.errors import SrattnError


@dataclasses.dataclass(frozen=True)
class Options:
    """Bounds of a service.

    Attributes:
        max_batch: images that the model is given at once, at most.
        max_wait_ms: how long the first image of a batch waits for others.
        queue: images that are accepted and not yet answered, at most; beyond them the answer is 503.
        max_bytes: of a request's body.
        max_pixels: of a picture, by its header.
        max_images: of one request.
        timeout_s: seconds that the body may take to arrive, and then seconds until the answer.
        workers: threads that decode pictures.
        token: what clients have to send as `Authorization: Bearer TOKEN`; None asks for nothing.

    Raises:
        SrattnError: a value out of range.
    """

    max_batch: int = 16
    max_wait_ms: float = 3.0
    queue: int = 256
    max_bytes: int = 16 << 20
    max_pixels: int = 40_000_000
    max_images: int = 64
    timeout_s: float = 30.0
    workers: int = 2
    token: str | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue", "max_bytes", "max_pixels", "max_images", "workers"):
            if getattr(self, name) < 1:
                raise SrattnError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_pixels > MAX_PIXELS:
            raise SrattnError(f"max_pixels can be {MAX_PIXELS:,} at most, got {self.max_pixels:,}")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise SrattnError(f"max_wait_ms must be from 0 to 10,000, got {self.max_wait_ms}")
        if not 0 < self.timeout_s <= 3600:
            raise SrattnError(f"timeout_s must be above 0 and at most 3,600, got {self.timeout_s}")
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            raise SrattnError("a token is at least one printable ASCII character")

    @property
    def images(self) -> int:
        """Images of one request, at most: more than the queue holds could never be accepted."""
        return min(self.max_images, self.queue)

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are held at once: those of the queue, but no more than sixteen of the largest."""
        return min(self.queue, 16) * self.max_bytes
