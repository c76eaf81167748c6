"""One process of a run, started by the fixture `launch`; `job` is given by it.

options: of TrainConfig.
by_rank: [{...}, ...]: options of each process beside those.
do: {"kill" | "terminate" | "raise": [rank, step]}: what happens to that process after that step.
poison: [rank, step]: there the inputs are no numbers.
lose: [rank, count]: there so many of the training images are not found.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

job: dict[str, Any] = globals()["job"]


def main() -> int:
    import torch

    from srattn.engine import Interrupted, TrainConfig, guard, run, train
    from srattn.engine.learner import Learner
    from srattn.errors import SrattnError

    torch.set_num_threads(1)
    rank = job["rank"]
    options = job["options"] | (job["by_rank"][rank] if "by_rank" in job else {})
    deeds = {(deed, *place) for deed, place in job.get("do", {}).items()}
    losses: list[float] = []
    check, step, read = guard.check_finite, Learner.step, run.read_data

    def recorded(loss: float, norm: float, skips: bool) -> Any:
        losses.append(loss)
        return check(loss, norm, skips)

    def poisoned(self: Learner, batch: Any, images: int, number: int, rate: float) -> Any:
        if job.get("poison") == [rank, number]:
            batch.inputs.mul_(float("nan"))
        return step(self, batch, images, number, rate)

    def short_read(*args: Any) -> Any:
        data = read(*args)
        whole, (at, count) = data.train, job.get("lose", (-1, 0))
        if at != rank:
            return data
        left = len(whole) - count
        parts = {name: getattr(whole, name)[:left] for name in ("names", "labels", "sources")}
        return dataclasses.replace(data, train=dataclasses.replace(whole, **parts))

    def on_step(done: int) -> None:
        if ("kill", rank, done) in deeds:
            os.kill(os.getpid(), signal.SIGKILL)
        if ("terminate", rank, done) in deeds:
            signal.raise_signal(signal.SIGTERM)
        if ("raise", rank, done) in deeds:
            raise LookupError("the attic is empty")

    guard.check_finite, Learner.step, run.read_data = recorded, poisoned, short_read
    report: dict[str, Any] = {"losses": losses}
    try:
        result = train(TrainConfig(**options), on_step=on_step)
        report |= {"history": result.history, "answers": len(result.evaluation.answers), "first": result.first}
        report |= {"per_image": result.result.get("per_image")}
    except Interrupted as stopped:
        print(f"stopped after step {stopped.step}")
        return 130
    except SrattnError as error:
        print(f"srattn: error: {error}")
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        Path(job["folder"], f"{rank}.json").write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    with open(Path(job["folder"], f"{job['rank']}.txt"), "w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.stdout = sys.stderr = log
        os.environ.update(job["env"])
        sys.exit(main())
