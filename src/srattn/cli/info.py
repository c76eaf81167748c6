"""``srattn info``: what is available on this machine, and why not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal

from srattn.cli.main import EXTRAS
from srattn.version import __version__

if TYPE_CHECKING:
    import jsonargparse


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("--format", type=Literal["table", "json"], default="table", help="for people or for programs")


def run(args: jsonargparse.Namespace) -> int:
    facts = collect()
    if args.format == "json":
        print(json.dumps(facts, indent=2))
    else:
        _print_table(facts)
    return 0


def collect() -> dict[str, dict[str, Any]]:
    """What was found, by subject. `available` says yes or no, and `reason` then says why not and what would help."""
    return {
        "srattn": {"version": __version__, "location": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))},
        "python": {"version": platform.python_version(), "executable": sys.executable, "system": platform.platform()},
        "torch": _torch(),
        "kernels": _kernels(),
        "cuda": _cuda(),
        "mps": _mps(),
        **{package: _package(module, package, extra) for module, (package, extra) in EXTRAS.items()},
        "hub": _hub(),
    }


def _torch() -> dict[str, Any]:
    import torch

    capabilities = dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = "unknown, this torch does not say"
    if capabilities:
        fast = sorted(name for name, present in capabilities.items() if "bf16" in name and present is True)
        bf16 = ", ".join(fast) or "works, but the processor has no instructions for it"
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": str(capabilities.get("cpu_name", platform.processor() or platform.machine())),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": bf16,
    }


def _kernels() -> dict[str, Any]:
    """The compiled kernels for CPUs; asking compiles them, where that has not been done."""
    from srattn.ops import native
    from srattn.ops.native.library import cache_bytes

    if (reason := native.why_not()) is not None:
        return {"available": False, "reason": reason}
    return {
        "available": True,
        "lanes": native.lanes(),
        "cache_bytes": cache_bytes(),
        "bfloat16": native.why_not("bfloat16") or ("in matrix units" if native.has_matrix_units() else "yes"),
    }


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.backends.cuda.is_built():
        return {"available": False, "reason": f"torch {torch.__version__} was built without CUDA"}
    with warnings.catch_warnings(record=True) as caught:  # torch warns where the driver is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if available:
        return {"available": True, "version": torch.version.cuda, "devices": torch.cuda.device_count()}
    reason = "no NVIDIA GPU or no driver was found"
    if caught:
        reason = " ".join(str(caught[0].message).split())
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        reason += f" (CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r})"
    return {"available": False, "reason": reason}


def _mps() -> dict[str, Any]:
    import torch

    if torch.backends.mps.is_available():
        return {"available": True}
    built = torch.backends.mps.is_built()
    return {
        "available": False,
        "reason": "no Apple GPU that torch can use" if built else "this torch was built without it",
    }


def _package(module: str, package: str, extra: str) -> dict[str, Any]:
    if importlib.util.find_spec(module) is None:
        return {"available": False, "reason": f'pip install "srattn[{extra}]"'}
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # another distribution brings the module
        version = "of unknown version"
    return {"available": True, "version": version, "extra": extra}


def _hub() -> dict[str, Any]:
    """Whether pretrained weights can be fetched; the network itself is not asked."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return {"available": False, "reason": 'pip install "srattn[hub]"'}
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return {
            "available": False,
            "reason": "HF_HUB_OFFLINE is set: only cached weights",
            "cache": constants.HF_HUB_CACHE,
        }
    return {"available": True, "reached": "not tried", "endpoint": constants.ENDPOINT, "cache": constants.HF_HUB_CACHE}


def _print_table(facts: dict[str, dict[str, Any]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from srattn.cli.wide import console_for

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("what", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("details", overflow="fold")
    for name, fact in facts.items():
        rest = dict(fact)
        available = rest.pop("available", True)
        here = rest.pop("version", "yes") if available else "no"
        details = rest.pop("reason", None) or ", ".join(f"{key} {value}" for key, value in rest.items())
        table.add_row(name, escape(str(here)), escape(details), style=None if available else "yellow")
    console_for(table).print(table)
