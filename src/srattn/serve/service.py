"""A model, its thread, and the threads that decode for it."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from srattn.data.preprocess import Preprocess
from srattn.engine.embed import Vectors, body_of
from srattn.engine.weights import LoadedRun
from srattn.errors import SrattnError
from srattn.serve.attention import Answer, Maps, Order, Stage, explain, order_of, stages_of
from srattn.serve.fault import Fault, busy
from srattn.serve.gate import Gate
from srattn.serve.metrics import Metrics
from srattn.serve.options import Options
from srattn.serve.picture import Picture, Seen, see
from srattn.serve.tasks import answers_of
from srattn.serve.worker import Worker
from srattn.tasks.models import backbone_config

Value = TypeVar("Value")

_SOURCE = "; an exported file has none, and the service was not given the model that it was made of"


class Service:
    """From pictures to answers. Only its worker's thread touches the model once it was started.

    Args:
        attention: `srattn.explain.attention`, or None for a service without maps.
        source: the model that an exported file was made of, which has the vectors and maps that the file has not.

    Raises:
        SrattnError: a model that cannot be served.
    """

    def __init__(
        self, run: LoadedRun, options: Options, attention: Maps | None = None, source: LoadedRun | None = None
    ) -> None:
        self.run, self.options = run, options
        self.task = answers_of(run)
        self.model = str(backbone_config(getattr(run.model, "config", {})).get("name", type(run.model).__name__))
        self.gate = Gate(options.queue, options.held_bytes)
        self.metrics = Metrics(lambda: self.gate.images)
        self.stages: list[Stage] = []
        self.embeds = False
        # Vectors and maps are those of the backbone, which a classifier is itself.
        self._body = body_of(source or run)
        self._explained = source or run
        self._maps, self._vectors = attention, Vectors(self._body)
        # Accepted images that are still being decoded are worth waiting for; a lone one does not wait.
        self._worker = Worker(
            self._compute,
            options.max_batch,
            options.max_wait_ms / 1000,
            on_batch=self.metrics.batch,
            expected=lambda: self.gate.images,
        )
        self._pool = ThreadPoolExecutor(options.workers, thread_name_prefix="srattn-decode")
        self._numbers = itertools.count()
        self._warm = False

    def start(self) -> None:
        """Starts the thread and lets the model answer once, so that the first client does not wait for that."""
        if not self._warm:
            self._worker.start()
            self.stages, self.embeds = self._worker.submit(("warm",), None).result()
            self._warm = True

    def stop(self) -> None:
        """Finishes what was accepted, and ends the threads."""
        self._worker.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def predict(self, pictures: Sequence[Picture], **options: Any) -> list[dict[str, Any]]:
        """An answer for each picture, in their order; `options` are those of the task."""
        limit = self.options.max_pixels
        seen = await self._in_pool(self.task.see, [(each, limit, options) for each in pictures])
        values = iter(await self._ask("predict", seen))
        pairs = [(list(itertools.islice(values, len(each.inputs))), each) for each in seen]
        told = functools.partial(self.task.answer, **options)
        answers = await self._in_pool(told, pairs) if self.task.slow else [told(*pair) for pair in pairs]
        return [_named(each) | answer for each, answer in zip(seen, answers, strict=True)]

    async def embed(self, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """The pooled vector of each picture, as a classifier reads it."""
        if not self.embeds:
            raise Fault(404, f"this model has no vectors{_SOURCE}")
        seen = await self._see(pictures, self._body.preprocess)
        try:
            values = await self._ask("embed", seen)
        except SrattnError:
            raise Fault(422, "the model gives vectors that are not finite") from None
        return [_named(each) | {"vector": value} for each, value in zip(seen, values, strict=True)]

    async def explain(
        self, picture: Picture, x: float, y: float, stage: int | None, block: int | None, head: int | None
    ) -> tuple[Seen, Order, Answer]:
        """The map of a point, which is given in shares of the picture's sides."""
        if not self.stages:
            raise Fault(404, f"this model has no attention maps{_SOURCE}")
        (seen,) = await self._see([picture], self._explained.preprocess)
        order = order_of(self.stages, seen, x, y, stage, block, head)
        # A key of its own: maps are computed one by one.
        future = self._worker.submit(("explain", next(self._numbers)), (seen.pixels, order))
        try:
            return seen, order, await asyncio.wrap_future(future)
        except SrattnError as error:  # too large a map
            raise Fault(422, str(error)) from None

    async def _see(self, pictures: Sequence[Picture], preprocess: Preprocess) -> list[Seen]:
        return await self._in_pool(see, [(each, preprocess, self.options.max_pixels) for each in pictures])

    async def _in_pool(self, work: Callable[..., Value], given: Sequence[tuple[Any, ...]]) -> list[Value]:
        """What `work` makes of each of the arguments, in the threads that decode."""
        loop = asyncio.get_running_loop()
        try:
            jobs = [loop.run_in_executor(self._pool, work, *each) for each in given]
        except RuntimeError:  # the pool is closed
            raise busy("the service is stopping") from None
        try:
            return list(await asyncio.gather(*jobs))
        finally:
            for job in jobs:
                job.cancel()  # of no use any more, if one of them failed

    async def _ask(self, kind: str, seen: Sequence[Seen]) -> list[Any]:
        inputs = [pixels for each in seen for pixels in each.inputs]
        futures = [self._worker.submit((kind, tuple(pixels.shape)), pixels) for pixels in inputs]
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    @torch.inference_mode()
    def _compute(self, key: tuple[Any, ...], items: list[Any]) -> list[Any]:
        model = self._body.model
        if key[0] == "warm":
            self.task.compute(_blank(self.run))
            stages = [] if self._maps is None else stages_of(self._maps, model, _blank(self._explained))
            return [(stages, self._has_vectors(_blank(self._body)))]
        if key[0] == "explain":
            assert self._maps is not None
            return [explain(self._maps, model, _inputs(self._explained, [pixels]), order) for pixels, order in items]
        if key[0] == "embed":
            return self._vectors.compute(_inputs(self._body, items))[0].tolist()
        return self.task.compute(_inputs(self.run, items))

    def _has_vectors(self, inputs: torch.Tensor) -> bool:
        try:
            self._vectors.compute(inputs)
        except SrattnError:
            return False
        return True


def _inputs(run: LoadedRun, items: list[torch.Tensor]) -> torch.Tensor:
    """What the model of a run takes, of pixels as its preprocessing left them."""
    device = next(run.model.parameters()).device
    return run.preprocess.normalise(torch.stack(items).to(device).float() / 255)


def _blank(run: LoadedRun) -> torch.Tensor:
    return _inputs(run, [torch.zeros(run.preprocess.channels, *run.preprocess.size, dtype=torch.uint8)])


def _named(seen: Seen) -> dict[str, Any]:
    return {"name": seen.name, "width": seen.width, "height": seen.height}
