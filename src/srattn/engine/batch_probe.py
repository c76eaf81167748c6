"""Training steps on made-up images, timed, with the memory that they need: here on CUDA, on a CPU in a child process.

As a program (`python -m srattn.engine.batch_probe`) it reads a job and then one size of batch a line, in JSON.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

from srattn.engine.config import from_dict
from srattn.errors import SrattnError

_SECONDS, _STEPS = 1.0, 20  # of one trial, after two steps that warm up


@dataclasses.dataclass(frozen=True)
class Trial:
    """One size of batch: seconds a training step (the median), and the peak of memory in bytes."""

    batch: int
    seconds: float
    peak: int

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds


Probe = Callable[[int], "Trial | None"]


class Steps:
    """A model with its optimiser, as `srattn train` would make them for a job's configuration."""

    def __init__(self, job: dict[str, Any]) -> None:
        from srattn.engine.device import pick_device
        from srattn.engine.distributed import World
        from srattn.engine.learner import Learner
        from srattn.engine.start import prepare_model
        from srattn.tasks.models import task_options
        from srattn.tasks.registry import make_task

        config = from_dict(job["config"])
        names = [str(number) for number in range(int(job["classes"]))]
        self.config, self.classes, self.device = config, len(names), pick_device(config.device)
        if self.device.type == "cpu":
            torch.set_num_threads(config.threads)
        model, _ = prepare_model(config, names, weights=False)
        options = {**task_options(model), **({} if config.loss is None else {"loss": config.loss})}
        task = make_task(config.task, names, config.label_smoothing, **options)
        self.learner = Learner(config, model, task, World(self.device))

    def time(self, batch: int) -> float:
        """Seconds of a step with `batch` images, the median of several."""
        from srattn.engine.made_up import made_up

        config = self.config
        made = made_up(config, self.classes, batch)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 4 or (time.perf_counter() - began < _SECONDS and len(times) < _STEPS):
            start = time.perf_counter()
            self.learner.step(made, batch, len(times), config.lr)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
            if times[-1] > 2 * _SECONDS and len(times) == 2:
                break
        return statistics.median(times[2:] or times[1:])


class CudaProbe:
    """Trials in this process: a GPU says that its memory is used up, and goes on."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._steps = Steps(job)

    def __enter__(self) -> CudaProbe:
        return self

    def __exit__(self, *error: object) -> None:
        del self._steps
        torch.cuda.empty_cache()

    def __call__(self, batch: int) -> Trial | None:
        device = self._steps.device
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            seconds = self._steps.time(batch)
        except torch.cuda.OutOfMemoryError:
            seconds = None
        if seconds is None:  # outside of the handler, whose traceback holds the tensors
            self._steps.learner.optimiser.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            return None
        return Trial(batch, seconds, torch.cuda.max_memory_reserved(device))


class Child:
    """Trials in a process of their own, so that its peak is that of the steps; sizes must ascend."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = job

    def __enter__(self) -> Child:
        self._words = tempfile.TemporaryFile()  # a pipe that nobody reads meanwhile would fill up, and stop the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "srattn.engine.batch_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
        )
        self._send(self._job)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()
        self._words.close()

    def __call__(self, batch: int) -> Trial | None:
        self._send(batch)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer = json.loads(line)
            if "error" in answer:
                raise SrattnError(answer["error"])
            return Trial(**answer)
        code = self._process.wait()
        if code == -9:  # how a system ends what takes too much memory
            return None
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip()[-2000:]
        raise RuntimeError(f"the process that measures ended with code {code}: {words}")

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # why it ended is told when its answer is read


def peak_memory() -> int:
    """Bytes, the most that this process has held so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> int:
    """Answers on standard output: a trial a line, or an error."""
    try:
        steps = Steps(json.loads(sys.stdin.readline()))
        for line in sys.stdin:
            batch = int(json.loads(line))
            seconds = steps.time(batch)
            print(json.dumps(dataclasses.asdict(Trial(batch, seconds, peak_memory()))), flush=True)
    except SrattnError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
