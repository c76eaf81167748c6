"""Peak resident memory of a fresh process, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

METHOD = "VmHWM of a fresh process during the call, less VmRSS before it; freed blocks go back to the system at once"

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Freed blocks of 64 KiB and more leave the process at once, so that what was held before is not counted as in use.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


class ChildFailed(RuntimeError):
    """The fresh process ended with an error; the message is its last line."""


def peak_above(call: Callable[[], object]) -> int | None:
    """Bytes that this process held at most during `call`, above what it held before; None where the system tells not.

    Its threads, its libraries' buffers and pages of code that are read for the first time are counted.
    """
    gc.collect()
    _give_back()
    try:
        _RESET.write_text("5")  # the peak starts anew from what is held now
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, KeyError):
        return None


def in_child(module: str, function: str, arguments: Mapping[str, Any], threads: int, timeout: float = 900.0) -> Any:
    """What `module.function(**arguments)` returns in a fresh process of its own; both ways as JSON.

    Raises:
        ChildFailed: it raised something, was killed, or took longer than `timeout` seconds.
    """
    order = json.dumps({"module": module, "function": function, "arguments": dict(arguments), "path": sys.path})
    env = {**os.environ, **_MALLOC, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", "import json, sys; order = json.load(sys.stdin); sys.path[:] = order['path']; "]
    command[-1] += "from srattn.bench.memory import _obey; _obey(order)"
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env, text=True) as child:
        try:
            out, err = child.communicate(order, timeout=timeout)
        except BaseException as error:  # Ctrl-C included
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ChildFailed(f"took longer than {timeout:.0f} s") from None
            raise
    if child.returncode:
        last = next((line for line in reversed(err.splitlines()) if line.strip()), "without a word")
        raise ChildFailed(f"ended with {child.returncode}: {last.strip()}")
    return json.loads(out.splitlines()[-1])


def _obey(order: dict[str, Any]) -> None:
    """In the child: calls the function and prints what it returns as the last line."""
    result = getattr(importlib.import_module(order["module"]), order["function"])(**order["arguments"])
    print("\n" + json.dumps(result), flush=True)


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise KeyError(name)
    return 1024 * int(found[1])


def _give_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return
