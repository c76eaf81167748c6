"""A model so small that a run over the digits takes a second, and processes that train it."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srattn.engine import TrainConfig, train

TINY: dict[str, Any] = {
    "model": "pvt_v2_b0",
    "model_options": {
        "stem_stride": 1,
        "embed_dims": [8, 8, 8, 8],
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 2, 1],
        "mlp_ratios": [1, 1, 1, 1],
        "sr_ratios": [4, 2, 1, 1],
    },
    "size": 8,
    "batch_size": 256,
    "threads": 1,
    "epochs": 2,
    "device": "cpu",
}
WORKER = Path(__file__).parent / "worker.py"


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Options of `TrainConfig`."""
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(TrainConfig(**TINY, out=str(folder)))
    return folder


@dataclasses.dataclass
class Ended:
    """A process that has ended: its exit code (negative: the signal), what it printed, what it reported."""

    code: int | None
    text: str
    report: dict[str, Any]


Launch = Callable[..., list[Ended]]


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs worker.py in so many processes, with the surroundings that torchrun would give them; see there for jobs."""
    context = multiprocessing.get_context("forkserver")  # which imports once, and not with every process
    context.set_forkserver_preload(["srattn.engine.run", "torch.distributed.fsdp", "sklearn.datasets", "kornia"])

    def run(world: int, **job: Any) -> list[Ended]:
        folder = tmp_path_factory.mktemp("processes")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = []
        for rank in range(world):
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if world > 1 else {}
            own = job | {"env": {k: str(v) for k, v in env.items()}, "folder": str(folder), "rank": rank}
            process = context.Process(target=runpy.run_path, args=(str(WORKER), {"job": own}, "__main__"))
            process.start()
            processes.append(process)
        ended = []
        for rank, process in enumerate(processes):
            process.join(240)
            if process.is_alive():
                process.kill()
                process.join()
                pytest.fail(f"process {rank} of {world} did not end: {(folder / f'{rank}.txt').read_text()}")
            report = folder / f"{rank}.json"
            ended.append(
                Ended(
                    process.exitcode,
                    (folder / f"{rank}.txt").read_text(),
                    json.loads(report.read_text()) if report.exists() else {},
                )
            )
        return ended

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a fresh interpreter that finds the package as this one does."""
    import sys

    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
