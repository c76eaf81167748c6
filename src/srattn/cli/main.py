"""The command ``srattn``: picks the verb, imports its module alone, and turns errors into one line and an exit code.

Exit codes: 0 done, 2 something that the user can put right, 3 done but for images that could not be read (predict), 130
interrupted, 141 the reader of our output went away, 143 ended by SIGTERM.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from srattn.errors import SrattnError, missing_extra, nearest
from srattn.files import is_disk_full
from srattn.version import __version__

VERBS: dict[str, str] = {
    "train": "train a model on the digits or on a folder of class folders, and write a report",
    "predict": "classify image files or folders with a trained run",
    "eval": "measure a trained run or a model on a data set: accuracy, calibration, robustness, throughput",
    "embed": "write pooled vectors or feature maps of a data set to Parquet",
    "serve": "answer over HTTP with a trained run, a model or an exported file, and a page to try it",
    "tune": "search a learning rate or a batch size before a run",
    "data": "check a data set, or preview what the augmentation makes of it",
    "recipes": "list the recipes that come with the package, with their command, cost and result",
    "report": "show one run, or compare several, on one page",
    "explain": "show what a model looks at: attention, Grad-CAM, receptive fields, and what each key sees",
    "bench": "measure speed and memory beside other implementations",
    "plan": "show what each stage of a model will compute at an image size, and why",
    "models": "list the models and their sizes",
    "export": "write a model for ONNX Runtime, OpenVINO or torch.export, verified against eager",
    "push": "put a trained model and its card on the Hugging Face hub",
    "convert": "convert a checkpoint between state-dict layouts",
    "info": "show what is available on this machine, and why not",
}

SKIPPED = 3
"""The exit code of srattn predict where it answered some images and could not read others."""
GONE = 141
"""The exit code of a shell for a process whose reader went away."""

# Which extra installs a package that a verb may find missing: import name -> (package, extra).
EXTRAS: dict[str, tuple[str, str]] = {
    "PIL": ("pillow", "predict"),
    "faster_coco_eval": ("faster-coco-eval", "train"),
    "jinja2": ("jinja2", "train"),
    "kornia": ("kornia", "train"),
    "matplotlib": ("matplotlib", "train"),
    "numpy": ("numpy", "predict"),
    "nncf": ("nncf", "export"),
    "onnx": ("onnx", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "onnxscript": ("onnxscript", "export"),
    "openvino": ("openvino", "export"),
    "pyarrow": ("pyarrow", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tensorboard": ("tensorboard", "train"),
    "torchmetrics": ("torchmetrics", "train"),
    "fastapi": ("fastapi", "serve"),
    "python_multipart": ("python-multipart", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "datasets": ("datasets", "hub"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "transformers": ("transformers", "transformers"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``srattn ARGV`` and returns the exit code; never raises what a user can cause."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return GONE if code == 0 and isinstance(sys.stdout, _Nobody) and sys.stdout.asked else code
    except KeyboardInterrupt:
        print("srattn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The interpreter flushes standard output at its exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GONE
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich makes an exit of it, with code 1
            return GONE
        raise
    except Exception as error:
        message = _user_message(error)
        if message is None:
            raise
        if os.environ.get("SRATTN_TRACEBACK", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"srattn: error: {message}", file=sys.stderr)
        return 2


class _Nobody(io.TextIOBase):
    """A standard stream that was closed at the start: what is written is lost, and that something was is known."""

    asked = False

    def write(self, text: str) -> int:
        self.asked = True
        return len(text)


def _open_closed_streams() -> None:
    """Python has None for a closed stream, and prints to standard output instead; a file would take its number."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, _Nobody())
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BytesIO())


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_help(), file=sys.stderr)
        return 2
    verb, *rest = arguments
    if verb in ("-h", "--help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"srattn {__version__}")
        return 0
    if verb not in VERBS:
        kind = "option" if verb.startswith("-") else "command"
        hint = nearest(verb, [*VERBS, "--help", "--version"]) or "; see srattn --help"
        raise SrattnError(f"unknown {kind} {verb!r}{hint}")

    if arguments[:2] == ["bench", "gpu"] and importlib.util.find_spec("jsonargparse") is None:
        from srattn.bench.gpu import main as bench_gpu  # from a plain checkout it needs torch and Triton alone

        return bench_gpu(arguments[2:])
    # torch says so on every start where numpy is absent; nothing that runs without the extras needs it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    module = importlib.import_module(f"srattn.cli.{verb}")
    from srattn.cli.parser import make_parser

    parser = make_parser(verb, VERBS[verb])
    module.add_arguments(parser)
    try:
        parsed = parser.parse_args(rest)
    except SystemExit as stop:  # --help and --print_config
        return stop.code if isinstance(stop.code, int) else 0
    if verb == "train":  # a resumed run must know which options were asked for, also those that are at their default
        parsed["given"] = parser.given(rest)
    with _told("srattn.ops.native.build"):
        return module.run(parsed)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Within the block what a module logs is said on standard error: what makes a user wait."""
    logger, handler = logging.getLogger(name), _Teller()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"srattn: {record.getMessage()}", file=sys.stderr, flush=True)


def _help() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{text}" for verb, text in VERBS.items())
    return f"""usage: srattn COMMAND [OPTIONS]
       srattn COMMAND --help
       srattn --version

Spatial-Reduction Attention, PVT and PVT v2 in PyTorch.

commands:
{verbs}

An error is one line and exit code 2; SRATTN_TRACEBACK=1 shows where it came from."""


def _user_message(error: Exception) -> str | None:
    """The one line for an error that the user can put right; None for a defect of ours, which keeps its traceback."""
    if isinstance(error, SrattnError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError):
        root = (error.name or "").partition(".")[0]
        if root == "srattn":
            return f"this installation of srattn is incomplete ({error.name} is missing); install it again"
        return str(missing_extra(*EXTRAS[root])) if root in EXTRAS else None
    if is_disk_full(error):
        place = getattr(error, "filename", None)
        return f"no space left on the disk{f' for {place}' if place else ''}; nothing was overwritten"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return None
