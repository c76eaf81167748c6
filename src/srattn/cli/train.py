"""``srattn train``: trains a model, measures it, and writes a run folder with a report."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
import yaml

from srattn.cli.parser import VerbParser
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from srattn.engine.interrupt import NoSpace
    from srattn.engine.run import RunResult

REPORT_BYTES = 256 << 20  # validation images that a report may hold in memory


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    from srattn.engine.config import TrainConfig

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    add_config_argument(parser)
    parser.add_class_arguments(TrainConfig, as_group=False)


def add_config_argument(parser: jsonargparse.ArgumentParser) -> None:
    """`--config FILE` and `--recipe NAME`, for the options of a run."""
    parser.add_argument(
        "--config",
        "--recipe",
        action=_Options,
        metavar="FILE, NAME",
        help="options as YAML, such as the config.yaml of a run, over what is said before it and under what is said "
        "after; or, given before all others, those of a recipe that srattn recipes lists",
    )
    if isinstance(parser, VerbParser):
        parser.filled = _filled


class _Options(jsonargparse.ActionConfigFile):  # pyright: ignore[reportPrivateImportUsage]
    """Options from a file or a recipe, over what comes before it on the command line, as jsonargparse has it, and under
    what follows."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if option_string == "--recipe":
            from srattn import recipes

            given = sorted(key for key in _options() if key in cfg and cfg[key] != parser.get_default(key))
            if given:
                raise SrattnError(f"give --recipe first: it would overrule what is said of {given[0]} before it")
            values = yaml.safe_dump(recipes.load(values))
        before = {name: cfg[name] for name in self._said_before(parser, cfg) if name in cfg}
        self.apply_config(parser, cfg, self.dest, values)
        for name, value in before.items():
            if cfg[name] != value and parser.tells:
                print(
                    f"srattn: note: {values} comes after --{name} and overrules it, {cfg[name]!r} in place of "
                    f"{value!r}; give {option_string} before it to have it the other way round",
                    file=sys.stderr,
                )

    def _said_before(self, parser: VerbParser, cfg: Any) -> list[str]:
        """The options of a run that stand before this file on the command line."""
        files = [place for place, word in enumerate(parser.words) if word.split("=")[0] in self.option_strings]
        done = cfg.get(self.dest)
        end = files[len(done) if isinstance(done, list) else 0]
        names = [word.removeprefix("--").split("=")[0].split(".")[0] for word in parser.words[:end] if word[:2] == "--"]
        return [name for name in dict.fromkeys(names) if name in _options()]


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """What the options that are not given come to, as far as they say it themselves."""
    from srattn.engine.config import TrainConfig
    from srattn.engine.defaults import known

    names = _options()
    return known(TrainConfig(**{name: value for name, value in values.items() if name in names}))


def _options() -> set[str]:
    from srattn.engine.config import TrainConfig

    return {field.name for field in dataclasses.fields(TrainConfig)}


def run(args: jsonargparse.Namespace) -> int:
    from srattn.engine import Interrupted, TrainConfig, train
    from srattn.engine.interrupt import NoSpace, resumable
    from srattn.engine.progress import figure_text, make_progress

    values: dict[str, Any] = args.as_dict()
    values.pop("config", None)
    given: Collection[str] | None = values.pop("given", None)
    try:
        result = train(TrainConfig(**values), make_progress(), given=given)
    except Interrupted as stopped:
        if int(os.environ.get("RANK", "0")):
            return 128 + stopped.number
        print(
            f"srattn: stopped in epoch {stopped.epoch} after step {stopped.step} and saved; "
            f"continue with: srattn train --resume {shlex.quote(str(stopped.folder))}",
            file=sys.stderr,
        )
        return 128 + stopped.number
    except NoSpace as full:
        raise _go_on(full) from full
    if not result.first:
        return 0
    headline = result.result["headline"]
    figure = figure_text(headline, result.result[headline])
    print(f"held-out {headline} {figure} on {result.result['val_images']} images")
    print(f"run folder {result.folder}")
    try:
        with resumable(result.folder):
            report = _report(result)
    except NoSpace as full:
        raise _go_on(full) from full
    if report is not None:
        print(f"report {report}")
    return 0


def _go_on(full: NoSpace) -> SrattnError:
    place = f" for {full.filename}" if full.filename else ""
    return SrattnError(
        f"no space left on the disk{place}; nothing is lost: make room, and the run goes on from its last checkpoint "
        f"with: srattn train --resume {shlex.quote(str(full.folder))}"
    )


def _report(result: RunResult) -> Path | None:
    """Writes report.html; says why not where a package is missing, since the run itself is complete."""
    from srattn.data.dense import SceneLoader

    try:
        from srattn.explain.report import write_report
        from srattn.explain.scenes_report import TASKS, write_scene_report
    except ImportError as error:
        print(f'srattn: no report, {error.name} is not installed: pip install "srattn[train]"', file=sys.stderr)
        return None
    path = result.folder / "report.html"
    if result.config.task in TASKS:
        write_scene_report(path, scene_report_inputs(result), overwrite=True)
    elif isinstance(result.loader, SceneLoader):
        return None  # no page tells of such a task yet
    else:
        write_report(path, report_inputs(result), overwrite=True)
    return path


def report_inputs(result: RunResult) -> Any:
    """What the report shows of a run: the validation images that could be read, of very many an even selection."""
    import torch

    from srattn.explain.report import ReportInputs

    data, loader, evaluation = result.loader.data, result.loader, result.evaluation
    height, width = data.preprocess.size
    most = max(1, REPORT_BYTES // (2 * 4 * data.preprocess.channels * height * width))
    count = len(evaluation.indices)
    rows = torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).long()  # of the answers
    images = loader.val_pixels(evaluation.indices[rows])
    there = torch.tensor([index not in data.val.lost for index in evaluation.indices[rows].tolist()], dtype=torch.bool)
    rows, images = rows[there], images[there]
    return ReportInputs(
        **_facts(result),
        images=images,
        model_inputs=data.preprocess.normalise(images),
        labels=data.val.labels[evaluation.indices[rows]],
        probabilities=evaluation.answers[rows],
    )


def scene_report_inputs(result: RunResult) -> Any:
    """What the report shows of a run on masks, boxes, depths or joints: the validation images that could be read."""
    from srattn.data.dense import SceneLoader
    from srattn.explain.scenes_report import SceneReportInputs
    from srattn.tasks.models import task_options
    from srattn.tasks.registry import make_task

    data, loader, answers = result.loader.data, result.loader, result.evaluation.answers
    assert isinstance(loader, SceneLoader)
    task = make_task(result.config.task, data.classes, **task_options(result.model))
    measured: list[int] = result.evaluation.indices.tolist()
    return SceneReportInputs(
        **_facts(result),
        task=task,
        palette=loader.data.palette,
        names=[data.val.names[index] for index in measured],
        scene=lambda number: loader.val_scene(measured[number]),
        normalise=data.preprocess.normalise,
        size=data.preprocess.size,
        answers=answers if task.name == "detection" and len(answers) == len(measured) else None,
        bones=loader.data.bones,
    )


def _facts(result: RunResult) -> dict[str, Any]:
    """What every report tells."""
    from srattn.engine.config import to_yaml

    return {
        "title": f"{result.config.model} on {Path(result.config.data).name}",
        "history": result.history,
        "classes": result.loader.data.classes,
        "model": result.model.cpu(),
        "config_yaml": to_yaml(result.config),
        "result": result.result,
        "skipped": [*result.loader.data.skipped, *result.result["lost"]],
    }
