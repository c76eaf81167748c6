"""How much a service takes on at once."""

from __future__ import annotations

from types import TracebackType

from srattn.serve.fault import busy


class Gate:
    """Counts the images that are accepted and not yet answered, and the bytes held for them.

    Used by the event loop alone, so it needs no lock.
    """

    def __init__(self, images: int, size: int) -> None:
        self.most_images, self.most_bytes = images, size
        self.images = self.bytes = 0

    def enter(self) -> Ticket:
        """A place for one image, given back at the end of a `with`.

        Raises:
            Fault: 503, there is none.
        """
        ticket = Ticket(self)
        ticket.add_images(1)
        return ticket


class Ticket:
    """What one request holds."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._images = self._bytes = 0

    def add_images(self, count: int) -> None:
        """Raises `Fault` 503 where the queue has no room for them."""
        gate = self._gate
        if gate.images + count > gate.most_images:
            raise busy(f"the queue of {gate.most_images} image(s) is full; try again")
        gate.images += count
        self._images += count

    def add_bytes(self, count: int) -> None:
        """Raises `Fault` 503 where too much is held already."""
        gate = self._gate
        if gate.bytes + count > gate.most_bytes:
            raise busy("too many bytes are being received; try again")
        gate.bytes += count
        self._bytes += count

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.images -= self._images
        self._gate.bytes -= self._bytes
        self._images = self._bytes = 0
