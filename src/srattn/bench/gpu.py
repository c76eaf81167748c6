"""``srattn bench gpu``: checks, tunes and measures the GPU kernels in one call, within a few minutes.

Also as ``python -m srattn.bench.gpu`` from a plain checkout (PYTHONPATH=src) with torch and Triton alone. First every
kernel is held against the definition in float64, and one that is wrong gets no figure. Then block sizes are tuned and
kept for later use, and then attention, whole models and memory are measured beside timm's, or, where timm is absent,
beside the published module restated in torch. A stop clock leaves out what no longer fits, and says so.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

PARTS = ("check", "tune", "attention", "models", "memory", "modules")


def add_arguments(parser: Any) -> None:
    """Options of the command, for argparse and for jsonargparse."""
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun that would end later")
    parser.add_argument("--parts", type=str, default=",".join(PARTS), help="what to do, separated by commas")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument("--out", type=str, default=None, help="a .json file for the result")
    parser.add_argument("--overwrite", action="store_true", help="replace it where it exists")


def run(args: Any) -> int:
    """Returns 1 where a kernel is wrong, else 0.

    Raises:
        SrattnError: an unknown part, a time that is not positive, a file that exists, no GPU, no Triton.
    """
    parts = _parts(args.parts)
    _check(args)
    from srattn.bench import gpu_run

    return gpu_run.run(parts, args.minutes, args.smoke, args.out, args.overwrite)


def main(argv: Sequence[str] | None = None) -> int:
    """As `run`; an error is one line and exit code 2."""
    from srattn.errors import SrattnError

    # torch says so where numpy is absent; nothing here needs it.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy", category=UserWarning)
    parser = argparse.ArgumentParser("srattn bench gpu", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except SystemExit as stop:  # --help, and what argparse has complained about
        return stop.code if isinstance(stop.code, int) else 2
    except SrattnError as error:
        print(f"srattn: error: {error}", file=sys.stderr)
        return 2


def _parts(text: str) -> tuple[str, ...]:
    from srattn.errors import SrattnError, nearest

    asked = [word for word in text.split(",") if word]
    for word in asked:
        if word not in PARTS:
            raise SrattnError(f"no part {word!r}{nearest(word, PARTS)}; parts are {', '.join(PARTS)}")
    if not asked:
        raise SrattnError(f"--parts names none of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in asked)


def _check(args: Any) -> None:
    """Everything that can be wrong before work starts."""
    import importlib.util
    import os
    from pathlib import Path

    from srattn.errors import SrattnError

    if not args.minutes > 0:
        raise SrattnError(f"--minutes is above 0, got {args.minutes}")
    if args.out is not None:
        if Path(args.out).suffix != ".json":
            raise SrattnError(f"--out ends in .json, got {args.out!r}")
        if os.path.lexists(args.out) and not args.overwrite:
            raise SrattnError(f"{args.out} exists and is not overwritten; add --overwrite or choose another path")
    if importlib.util.find_spec("triton") is None:
        raise SrattnError("the kernels need Triton, which is not installed: pip install triton")
    if args.smoke:
        if importlib.util.find_spec("numpy") is None:
            raise SrattnError("--smoke needs numpy, with which Triton's interpreter computes: pip install numpy")
        if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET", "0") != "1":
            raise SrattnError("--smoke needs TRITON_INTERPRET=1 in the environment before anything loads Triton")
        os.environ["TRITON_INTERPRET"] = "1"
        return
    import torch

    if not torch.cuda.is_available():
        raise SrattnError(
            f"no GPU is within reach (torch {torch.__version__}); with one, this checks, tunes and measures the kernels"
            f" in {args.minutes:g} minutes; --smoke runs everything at tiny sizes on the CPU"
        )


if __name__ == "__main__":
    sys.exit(main())
