"""What the options do to a run."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Mapping
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from srattn.engine import Interrupted, TrainConfig, load_run, train
from srattn.engine.compiled import compile_parts
from srattn.engine.defaults import resolve
from srattn.engine.learner import Learner
from srattn.engine.lora import merge_lora
from srattn.engine.lora_file import read_lora
from srattn.engine.progress import Silent
from srattn.engine.start import prepare_model
from srattn.engine.weights import save_weights
from srattn.errors import SrattnError
from srattn.models import build_model
from srattn.ops import native, plan

ONE = {"epochs": 1}
# torch.compile asks inputs inside the graph for theirs, and hides the warning where warnings are no errors.
quiet = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def plain(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one epoch without anything."""
    return train(TrainConfig(**tiny | ONE, out=str(tmp_path_factory.mktemp("plain") / "run")))


def test_a_step_in_parts_is_the_same_step(tiny: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    parts = train(TrainConfig(**tiny | ONE, accumulate=3, out=str(tmp_path / "run")))
    # Sums in another order: a few float32 roundings, grown over six updates.
    assert parts.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-5)
    assert parts.history[0]["val_loss"] == pytest.approx(plain.history[0]["val_loss"], rel=1e-5)


def test_weights_of_classes(tiny: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    """In parts of unequal weight it is the same step; what is measured knows nothing of weights."""
    numbers: list[float] = [1, 5, 0.1, 1, 1, 1, 1, 1, 2, 0]
    whole, parts = (
        train(TrainConfig(**tiny | ONE, class_weights=numbers, accumulate=n, out=str(tmp_path / str(n))))
        for n in (1, 3)
    )
    for name in ("train_loss", "val_loss"):
        assert parts.history[0][name] == pytest.approx(whole.history[0][name], rel=1e-5)
        assert abs(whole.history[0][name] - plain.history[0][name]) > 1e-3
    assert load_run(whole.folder).classes == load_run(plain.folder).classes
    same = train(TrainConfig(**tiny | ONE, class_weights=[2] * 10, out=str(tmp_path / "same")))
    assert same.history[0]["val_loss"] == pytest.approx(plain.history[0]["val_loss"], rel=1e-5)
    assert train(TrainConfig(**tiny | ONE, class_weights="balanced", out=str(tmp_path / "b"))).history


@pytest.mark.parametrize("given", ["even", [], [1, -1], [0, 0], [float("nan"), 1]])
def test_what_weighs_no_classes_is_refused(given: Any) -> None:
    with pytest.raises(SrattnError, match="class_weights are balanced, or a number from 0 up for each class"):
        TrainConfig(class_weights=given)


def test_weights_are_for_classes_without_a_teacher() -> None:
    with pytest.raises(SrattnError, match="class_weights and --distill exclude each other"):
        resolve(TrainConfig(class_weights="balanced", distill="box"))
    with pytest.raises(SrattnError, match="--class_weights has no meaning for detection"):
        resolve(TrainConfig(class_weights="balanced", task="detect"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_nearly_the_same(
    tiny: dict[str, Any], plain: Any, tmp_path: Path, precision: str
) -> None:
    result = train(TrainConfig(**tiny | ONE, precision=precision, channels_last=True, out=str(tmp_path / "run")))  # type: ignore[arg-type]
    # bf16 has 8 bits: a logit of about 1 is off by 2^-8 at most, so is the loss.
    assert result.history[0]["val_loss"] == pytest.approx(plain.history[0]["val_loss"], abs=2**-7)
    assert all(tensor.dtype == torch.float32 for tensor in weights(result.folder).values())
    assert result.result["precision"] == precision


@quiet
def test_it_is_compiled_if_asked(
    tiny: dict[str, Any], plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: list[str] = []

    def read(graph: torch.fx.GraphModule, example: Any) -> Any:
        # Traced as ever and run by torch, since a compiler of C++ takes a minute.
        kernels.extend(str(node.target) for node in graph.graph.nodes if "srattn" in str(node.target))
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=read))
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    result = train(TrainConfig(**tiny | ONE, compile=True, out=str(tmp_path / "run")))
    # An embedding and a block of each of the four stages; the smaller last batch and validation make no graphs.
    assert counters["stats"]["unique_graphs"] == 8 and not counters["graph_break"]
    assert kernels == (["srattn.cpu_feed_forward.default"] * 4 if native.available() else [])
    for name, tensor in weights(result.folder).items():
        torch.testing.assert_close(tensor, weights(plain.folder)[name], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@quiet
def test_blocks_of_one_shape_share_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build_model("pvt_v2_b0", depths=(1, 1, 1, 12), embed_dims=(8, 8, 8, 8), num_heads=(1, 1, 1, 1))
    assert compile_parts(model) == 19
    model(torch.zeros(2, 3, 64, 64)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 8
    assert compile_parts(torch.nn.Linear(2, 2)) == 1
    torch._dynamo.reset()


def test_blocks_on_a_gpu_keep_their_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **k: found.append((type(self).__name__, k["options"])))
    model = build_model("cmt_ti", img_size=64)
    compile_parts(model)
    assert found and not any(options for _, options in found)
    found.clear()
    monkeypatch.setattr(plan, "KERNEL_DEVICES", frozenset({"cpu"}))
    compile_parts(model)
    assert {name for name, options in found if options == {"layout_optimization": False}} == {"CmtBlock"}
    assert {name for name, options in found if options is None} == {"StemPatchEmbed", "PatchEmbed"}
    assert "layout_optimization" in torch._inductor.list_options()


def test_patience_and_the_best_weights(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Learner.step

    def worse(self: Learner, batch: Any, images: int, number: int, rate: float) -> Any:
        # From the second epoch on it learns the wrong classes.
        if number >= 6:
            batch.labels.add_(5).remainder_(10)
        return step(self, batch, images, number, rate)

    monkeypatch.setattr(Learner, "step", worse)
    options = tiny | {"epochs": 9, "lr": 1e-2, "patience": 2, "keep": "best", "keep_checkpoints": 1, "ema_decay": 0.5}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")))
    accuracies = [record["val_accuracy"] for record in result.history]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) == best + 3 < 9
    assert result.result["ended"] == "patience" and result.result["best_epoch"] == best + 1
    assert result.result["accuracy"] == accuracies[best] > accuracies[-1]
    again = train(TrainConfig(resume=str(result.folder)))  # it stays ended
    assert again.result["accuracy"] == accuracies[best] and len(again.history) == len(accuracies)


@pytest.mark.parametrize("chooses", [{"keep": "best"}, {"patience": 2}])
def test_test_images_choose_nothing(chooses: dict[str, Any], tiny: dict[str, Any], tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name, level in (("dark", 0), ("light", 255)):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(5):
                Image.new("L", (8, 8), level).save(tmp_path / "data" / part / name / f"{number}.png")
    given = tiny | {"data": str(tmp_path / "data"), "epochs": 1, "out": str(tmp_path / "run")}
    for val in ({}, {"val": "test"}):
        with pytest.raises(SrattnError, match=r"would choose weights by the test images .* --val split"):
            train(TrainConfig(**given | val | chooses))
    assert not (tmp_path / "run").exists()
    train(TrainConfig(**given | chooses, val="split"))


class Clock:
    """A second passes with every step; those of `stops` are interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *stops: int) -> None:
        self.now, self.stops = 0.0, stops
        self.rates: list[float] = []
        monkeypatch.setattr("srattn.engine.trainer.time.perf_counter", lambda: self.now)
        step = Learner.step

        def noted(learner: Learner, batch: Any, images: int, number: int, rate: float) -> Any:
            self.rates.append(rate)
            self.now += 1
            return step(learner, batch, images, number, rate)

        monkeypatch.setattr(Learner, "step", noted)

    def __call__(self, steps_done: int) -> None:
        if steps_done in self.stops:
            signal.raise_signal(signal.SIGINT)


class Shown(Silent):
    """Remembers how far a run was said to be."""

    def start(self, step: int, steps: int, epochs: int) -> None:
        self.first, self.total, self.steps = step, steps, list[int]()

    def step(self, epoch: int, step: int, figures: Mapping[str, float], speed: float, waiting: float) -> None:
        self.steps.append(step)


def test_a_budget_is_kept_and_the_rate_falls_by_the_clock(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 seconds, over three epochs and a part of the fourth of fifty; an interruption takes no time from it."""
    clock = Clock(monkeypatch)
    options = tiny | {"epochs": 50, "budget_minutes": 20 / 60, "lr": 1e-3, "min_lr": 0.0, "warmup_epochs": 0.0}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")), on_step=clock)
    assert result.result["ended"] == "budget_minutes" and result.result["epochs"] == 4
    expected = [0.5e-3 * (1 + math.cos(math.pi * second / 20)) for second in range(len(clock.rates))]
    assert 20 <= len(clock.rates) <= 22 and clock.rates[:20] == pytest.approx(expected[:20], abs=1e-4)
    assert clock.rates[-1] < 1e-5 and result.history[-1]["learning_rate"] < 1e-5

    again = Clock(monkeypatch, 8)
    with pytest.raises(Interrupted):
        train(TrainConfig(**options, out=str(tmp_path / "other")), on_step=again)
    again.now = 1000.0
    shown = Shown()
    train(TrainConfig(resume=str(tmp_path / "other")), shown, on_step=again)
    # Two fifths of the time are over, and so are two fifths of what is shown, whatever part of all steps that is.
    assert shown.first == pytest.approx(shown.steps[0], abs=0.05 * shown.total) and shown.first > 0.35 * shown.total
    assert again.rates[:20] == pytest.approx(clock.rates[:20], abs=1e-4)


def test_the_last_epoch_ends_a_run_before_its_budget(tiny: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    result = train(TrainConfig(**tiny | ONE, budget_minutes=1e6, out=str(tmp_path / "run")))
    assert result.result["ended"] == "epochs"
    assert result.history[0]["train_loss"] == plain.history[0]["train_loss"]


def test_the_time_is_up(tiny: dict[str, Any], tmp_path: Path) -> None:
    steps: list[int] = []
    result = train(TrainConfig(**tiny, max_minutes=1e-9, out=str(tmp_path / "run")), on_step=steps.append)
    assert steps == [1]
    assert result.result["ended"] == "max_minutes" and result.result["epochs"] == 1
    assert result.result["steps"] == result.history[-1]["step"] == 1  # not those of the rest of the epoch
    assert math.isfinite(result.result["accuracy"]) and (tmp_path / "run" / "model.safetensors").is_file()
    train(TrainConfig(resume=str(tmp_path / "run")), on_step=steps.append)
    assert steps == [1]


def test_measured_at_another_size(tiny: dict[str, Any], tmp_path: Path) -> None:
    result = train(TrainConfig(**tiny | ONE, eval_size=16, out=str(tmp_path / "run")))
    loader = result.loader
    assert next(loader.train(0)).inputs.shape[-2:] == (8, 8)
    assert next(loader.val()).inputs.shape[-2:] == (16, 16)
    assert load_run(result.folder).preprocess.size == (16, 16)
    assert result.result["image_size"] == 16


def test_weights_to_start_from(tiny: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener:
        def __getattr__(self, name: str) -> Any:
            return (lambda text: notes.append(text)) if name == "note" else (lambda *_: None)

    options = tiny | ONE | {"init": str(plain.folder), "lr": 1e-12, "min_lr": 0.0, "weight_decay": 0.0}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")), Listener())  # type: ignore[arg-type]
    assert result.result["accuracy"] == plain.result["accuracy"]
    assert any(note.startswith(f"starts from {plain.folder}") for note in notes)


def test_weights_bring_their_model(tiny: dict[str, Any], plain: Any) -> None:

    config = resolve(TrainConfig(data="digits", init=str(plain.folder), model_options={"qkv_bias": False}))
    assert (config.model, config.size, config.channels) == ("pvt_v2_b0", tiny["size"], 1)
    assert {**config.model_options, **tiny["model_options"]} == config.model_options
    assert config.model_options["qkv_bias"] is False and "num_classes" not in config.model_options
    other = resolve(TrainConfig(data="digits", init=str(plain.folder), model="pvt_v2_b1", size=32))
    assert (other.model, other.size, other.model_options) == ("pvt_v2_b1", 32, {})
    with pytest.raises(SrattnError, match="nowhere does not exist"):
        resolve(TrainConfig(data="digits", init="nowhere"))


def test_maps_lie_channels_last(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = {"stem_stride": 1, "embed_dims": [8, 8], "depths": [1, 1], "num_heads": [1, 1], "mlp_ratios": [1, 1]}
    options |= {"sr_ratios": [2, 1], "stem_channels": 4, "fc_dim": 8}
    run = tiny | ONE | {"model": "cmt_ti", "model_options": options}  # with weights of five dimensions
    result = train(TrainConfig(**run, channels_last=True, out=str(tmp_path / "run")))
    layouts = [p.is_contiguous(memory_format=torch.channels_last) for p in result.model.parameters() if p.ndim == 4]
    assert layouts and all(layouts)


def test_a_new_head_for_other_classes(tiny: dict[str, Any], plain: Any) -> None:

    config = resolve(TrainConfig(**tiny, init=str(plain.folder)))
    fresh, _ = prepare_model(config, ["a", "b"], weights=False)
    model, notes = prepare_model(config, ["a", "b"])
    expected = plain.model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh.state_dict() if name.startswith("head.") else expected)[name]), name
    assert any("a new head for 2 classes" in note for note in notes)


def test_weights_of_another_model_are_refused_with_the_way_out(tiny: dict[str, Any], plain: Any) -> None:
    wider = {**tiny["model_options"], "embed_dims": [8, 8, 8, 16]}
    config = resolve(TrainConfig(**{**tiny, "model_options": wider}, init=str(plain.folder)))
    with pytest.raises(SrattnError, match=r"--init \S+ is of another model .* leave --model and --model_options out"):
        prepare_model(config, list("0123456789"))


def test_frozen_parts_stay(tiny: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    options = tiny | ONE | {"init": str(plain.folder), "freeze": ["stages.0", "stages.1"]}
    result = train(TrainConfig(**options, ema_decay=0.9, out=str(tmp_path / "run")))
    before, after = weights(plain.folder), weights(result.folder)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    frozen = {name for name in before if name.startswith(("stages.0.", "stages.1."))}
    assert not changed & frozen
    assert changed > {name for name in before if ".mlp." in name or name.startswith("head.")} - frozen


def test_adapters(tiny: dict[str, Any], plain: Any, launch: Any, tmp_path: Path) -> None:
    options = tiny | ONE | {"init": str(plain.folder), "lora_rank": 2, "ema_decay": 0.5, "lr": 1e-2}
    result = train(TrainConfig(**options, out=str(tmp_path / "run")))
    before, after = weights(plain.folder), weights(result.folder)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = {name.split(".attn.")[-1] for name in changed}
    assert parts == {"q.weight", "v.weight", "head.weight", "head.bias"}
    # The small file makes the model that the run began with the trained one.
    begun = load_run(plain.folder).model
    assert read_lora(tmp_path / "run" / "lora.safetensors", begun)
    merge_lora(begun)
    assert all(torch.equal(tensor, after[name]) for name, tensor in begun.state_dict().items())
    # The saved file is a plain model that gives the measured answers.
    run = load_run(tmp_path / "run")
    batch = next(result.loader.val())
    with torch.no_grad():
        assert torch.allclose(run.model(batch.inputs).softmax(1), result.evaluation.answers[: len(batch.labels)])
    # Killed and resumed it is the same, adapters and all; divided over two processes it is nearly so.
    folder = tmp_path / "resumed"
    given = options | {"out": str(folder), "checkpoint_steps": 2}
    (ended,) = launch(1, options=given, do={"kill": [0, 5]})
    assert ended.code == -9, ended.text
    train(TrainConfig(resume=str(folder)))
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(folder).items())
    ended = launch(2, options=options | {"out": str(tmp_path / "two"), "distributed": "fsdp"})
    assert [process.code for process in ended] == [0, 0], ended[0].text
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["loss"] == pytest.approx(result.result["loss"], rel=1e-5)
    assert all(torch.allclose(tensor, after[name], atol=1e-4) for name, tensor in weights(tmp_path / "two").items())


def test_a_run_goes_on_with_the_teacher_it_began_with(
    tiny: dict[str, Any], plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step(step: int) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    shutil.copy(plain.folder / "model.safetensors", "teacher.safetensors")
    options = tiny | ONE | {"distill": "teacher.safetensors", "init": "teacher.safetensors"}
    with pytest.raises(Interrupted):
        train(TrainConfig(**options, out=str(tmp_path / "run")), on_step=on_step)
    shutil.copytree("run", "old")
    monkeypatch.chdir("elsewhere")
    resume, teacher = TrainConfig(resume=str(tmp_path / "run")), tmp_path / "teacher.safetensors"
    found = load_run(plain.folder)
    with torch.no_grad():
        found.model.head.bias += 1e-3
    save_weights(teacher, found.model, found.classes, found.preprocess)
    with pytest.raises(SrattnError, match=r"the teacher .*/teacher\.safetensors is another than when the run began"):
        train(resume)
    for path in (tmp_path / "old" / "checkpoints").glob("step-*/state.json"):  # as it was before teachers were kept
        facts = json.loads(path.read_text())
        assert len(facts.pop("teacher")) == 64
        path.write_text(json.dumps(facts))
    train(TrainConfig(resume=str(tmp_path / "old")))
    shutil.copy(plain.folder / "model.safetensors", teacher)
    assert train(resume).config.init == str(teacher)


def test_a_teacher(tiny: dict[str, Any], plain: Any, tmp_path: Path) -> None:
    options = tiny | ONE | {"distill": str(plain.folder), "distill_weight": 1.0, "distill_temperature": 1.0}
    result = train(TrainConfig(**options | {"epochs": 2, "lr": 1e-2}, out=str(tmp_path / "run")))
    teacher, batch = load_run(plain.folder).model, next(result.loader.val())
    with torch.no_grad():
        wanted = teacher(batch.inputs).softmax(1)
    found = result.evaluation.answers[: len(wanted)]
    # It has learnt the teacher's answers, and not only the classes.
    assert (found - wanted).abs().mean() < (1 / 10 - wanted).abs().mean()
