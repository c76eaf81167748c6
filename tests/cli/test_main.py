"""The command: verbs, help, one-line errors, exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from PIL import Image

from srattn.cli import main as command
from srattn.cli.main import VERBS, main
from srattn.errors import SrattnError
from srattn.version import __version__

Run = Callable[[Any], int]


@dataclass
class Training:
    """How to train.

    Args:
        epochs: passes over the data
        schedule: how the learning rate moves
    """

    epochs: int = 3
    schedule: Literal["cosine", "constant"] = "cosine"


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Adds a verb `toy` that does what it is given."""

    def add(run: Run) -> None:
        module: Any = ModuleType("srattn.cli.toy")

        def add_arguments(parser: Any) -> None:
            parser.add_argument("--config", action="config", help="a YAML file")
            parser.add_argument("--size", type=int, default=224, help="pixels")
            parser.add_argument("--depth", type=int | None, help="blocks")
            parser.add_argument("--form", type=Literal["onnx", "torch"] | None, help="of the file")
            parser.add_class_arguments(Training, "train")

        module.add_arguments = add_arguments
        module.run = run
        monkeypatch.setitem(VERBS, "toy", "plays")
        monkeypatch.setitem(sys.modules, "srattn.cli.toy", module)

    return add


def fail_with(error: BaseException) -> Run:
    def run(args: Any) -> int:
        raise error

    return run


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The message on standard error, which is one line and all that there is."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("srattn: error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("srattn: error: ").rstrip("\n")


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in VERBS.items():
        assert f"  {name}" in out
        assert text in out


def test_nothing_asked_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: srattn COMMAND" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from srattn.version import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"srattn {__version__}\n"


def test_help_imports_neither_torch_nor_a_verb() -> None:
    code = """
import sys
from srattn.cli.main import main
main(["--help"])
print([name for name in sys.modules if name == "torch" or name.startswith("srattn.cli.")], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "['srattn.cli.main']"


def test_help_of_no_verb_loads_torch() -> None:
    code = """
import sys
from srattn.cli.main import VERBS, main
for verb in VERBS:
    main([verb, "--help"])
    if "torch" in sys.modules:
        print(verb, file=sys.stderr)
        break
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def test_options_reach_the_verb(verb: Callable[[Run], None], tmp_path: Path) -> None:
    seen = []

    def run(args: Any) -> int:
        seen.append((args.size, args.train.epochs, args.train.schedule))
        return 7

    verb(run)
    config = tmp_path / "config.yaml"
    config.write_text("size: 64\ntrain:\n  epochs: 9\n")
    assert main(["toy", "--config", str(config), "--train.schedule", "constant"]) == 7
    assert seen == [(64, 9, "constant")]


def test_help_of_a_verb(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(fail_with(AssertionError("the verb ran")))
    assert main(["toy", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: srattn toy" in out
    assert "passes over the data" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["xyzzy"], "unknown command 'xyzzy'; see srattn --help"),
        (["--versoin"], "unknown option '--versoin'; did you mean '--version'?"),
        (["toy", "--sise", "3"], "unrecognized arguments: --sise 3; did you mean '--size'?"),
        (["toy", "--sise=3"], "unrecognized arguments: --sise=3; did you mean '--size'?"),
        (["toy", "--siz", "3"], "unrecognized arguments: --siz 3; did you mean '--size'?"),
        (["toy", "--train.epocs", "3"], "unrecognized arguments: --train.epocs 3; did you mean '--train.epochs'?"),
        (["toy", "--depth", "deep"], "depth: Expected an int. Got value: deep"),
        (["toy", "--form", "onx"], "form: Expected one of ['onnx', 'torch']. Got value: onx; did you mean 'onnx'?"),
        (
            ["serve", "--model", "box"],
            "unrecognized arguments: --model; give it without --model, as in srattn serve MODEL",
        ),
        (["toy", "--size", "big"], "size: Expected an int. Got value: big"),
        (
            ["toy", "--train.schedule", "cosin"],
            "train.schedule: Expected one of ['cosine', 'constant']. Got value: cosin; did you mean 'cosine'?",
        ),
    ],
)
def test_wrong_words_get_the_nearest(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    verb(fail_with(AssertionError("the verb ran")))
    assert main(arguments) == 2
    assert error_line(capsys) == message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train:\n  epocs: 3\n", ["epocs", "did you mean 'epochs'?"]),
        ("sise: 3\n", ["sise", "did you mean 'size'?"]),
        ("train: [\n", ["config", "line 2"]),
    ],
)
def test_wrong_config_file(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, parts: list[str]
) -> None:
    verb(fail_with(AssertionError("the verb ran")))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert main(["toy", "--config", str(config)]) == 2
    line = error_line(capsys)
    for part in parts:
        assert part in line


def test_missing_config_file_is_named(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(fail_with(AssertionError("the verb ran")))
    assert main(["toy", "--config", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in error_line(capsys)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SrattnError("first\n  second"), "first second"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), "No such file or directory: a.png"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), "Permission denied: a.png"),
        (
            OSError(errno.ENOSPC, "No space left on device", "run"),
            "no space left on the disk for run; nothing was overwritten",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "no space left on the disk; nothing was overwritten",
        ),
        (
            ModuleNotFoundError("No module named 'sklearn.datasets'", name="sklearn.datasets"),
            'scikit-learn is not installed and is needed for this; install it with: pip install "srattn[train]"',
        ),
        (
            ModuleNotFoundError("No module named 'srattn.cli.x'", name="srattn.cli.x"),
            "this installation of srattn is incomplete (srattn.cli.x is missing); install it again",
        ),
    ],
)
def test_errors_of_the_user_are_one_line(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    verb(fail_with(error))
    assert main(["toy"]) == 2
    assert error_line(capsys) == message


@pytest.mark.parametrize("error", [RuntimeError("a defect"), ModuleNotFoundError("No module named 'x'", name="x")])
def test_our_defects_keep_their_traceback(verb: Callable[[Run], None], error: Exception) -> None:
    verb(fail_with(error))
    with pytest.raises(type(error)):
        main(["toy"])


def test_traceback_on_request(
    verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SRATTN_TRACEBACK", "1")
    verb(fail_with(SrattnError("one class only")))
    assert main(["toy"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("srattn: error: one class only\n")


def test_interrupt(verb: Callable[[Run], None], capsys: pytest.CaptureFixture[str]) -> None:
    verb(fail_with(KeyboardInterrupt()))
    assert main(["toy"]) == 130
    assert capsys.readouterr().err == "srattn: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="there are no kernels for this system")
def test_compiling_is_said_once_and_by_commands_alone(
    verb: Callable[[Run], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from srattn.ops.native import build

    monkeypatch.setenv("SRATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("SRATTN_NATIVE", "1")
    monkeypatch.setattr(build, "_compiler", lambda: sys.executable)
    monkeypatch.setattr(build, "_compile", lambda compiler, flags, path: path.touch())

    def run(args: Any) -> int:
        build.library_path()
        return 0

    verb(run)
    assert main(["toy"]) == main(["toy"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("srattn: compiling kernels") and shown.err.endswith(f"kept in {tmp_path}\n")
    build.library_path(anew=True)
    assert capsys.readouterr().err == ""


def test_reader_that_went_away() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "srattn", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 141
    assert done.stderr == ""


@pytest.mark.parametrize("verb", ["recipes", "models"])
def test_reader_that_went_away_from_a_table(verb: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        command = [sys.executable, "-m", "srattn", verb]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(
    ("closed", "arguments", "code", "out", "err"),
    [
        (">&-", "recipes", 141, "", ""),
        (">&-", "tarin", 2, "", "srattn: error: unknown command 'tarin'; did you mean 'train'?\n"),
        ("2>&-", "tarin", 2, "", ""),
        ("<&- 2>&-", "--version", 0, f"srattn {__version__}\n", ""),
    ],
)
def test_closed_streams(closed: str, arguments: str, code: int, out: str, err: str) -> None:
    command = f"exec {shlex.quote(sys.executable)} -m srattn {arguments} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "srattn", "tarin"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "srattn: error: unknown command 'tarin'; did you mean 'train'?\n"


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert main(["info", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"]["version"] == torch.__version__
    assert facts["torch"]["threads"] == torch.get_num_threads()
    assert facts["cuda"]["available"] is torch.cuda.is_available()
    assert all(fact.get("available", True) or fact["reason"] for fact in facts.values())
    assert {package for package, _ in command.EXTRAS.values()} <= set(facts)


def test_info_lists_what_every_extra_brings(root: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = {extra: {each.partition(">")[0].partition("[")[0] for each in extras[extra]} for extra in extras}
    listed = {package for package, _ in command.EXTRAS.values()}
    assert listed == set().union(*(brought[extra] for extra in ("train", "export", "hub", "serve", "transformers")))
    assert all(package in brought[extra] for package, extra in command.EXTRAS.values())
    assert "pillow" in brought["export"]


def test_predict_needs_its_extra_alone(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    others = [module for module, (_, extra) in command.EXTRAS.items() if extra != "predict"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({others!r}))
from srattn.cli.main import main
sys.exit(main(["predict", "photo.png", "--format", "csv"]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("photo.png,")


def test_info_says_how_to_get_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.EXTRAS, "no_such_module", ("no-such-package", "train"))
    assert main(["info"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "no-such-package" in line]
    assert len(lines) == 1
    assert 'pip install "srattn[train]"' in lines[0]


def test_info_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    from srattn.cli.info import collect

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert collect()["hub"]["available"] is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert collect()["hub"]["available"] is True


def test_info_makes_no_cuda_context(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from srattn.cli.info import collect

    def refuse() -> None:
        raise AssertionError("a CUDA context was made")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    for available, devices in ((True, 1), (False, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        monkeypatch.setattr(torch.cuda, "device_count", lambda found=devices: found)
        fact = collect()["cuda"]
        assert fact["available"] is available
        assert fact["devices"] == 1 if available else "no NVIDIA GPU" in fact["reason"]


@pytest.mark.parametrize(
    "words", [["eval", "--data", "digits", "--out", "eval.json"], ["tune", "lr"], ["predict", "x.png"]]
)
def test_what_processes_do_not_share_is_refused_by_each(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert re.search(rf"srattn {words[0]} .*is the work of one process, and there are 2", errors)
    assert errors.count("\n") == 1
