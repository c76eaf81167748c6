"""Steps that run in a process of their own: a foreign compiler that crashes takes only that process with it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from srattn.errors import SrattnError

_TIMEOUT = 3600.0
_LOOK = 0.5
"""Seconds between two looks of the child for its parent."""
_MARK, _STEP = "srattn-answer ", "srattn-step "


def in_child(who: str, module: str, function: str, **arguments: Any) -> Any:
    """What `module.function(**arguments)` returns in a fresh process; arguments and result are JSON-able.

    It ends with this one, and at once where this one is interrupted, with whatever processes it started.

    Args:
        who: names the work in an error, until the child calls `tell` with the name of a step.

    Raises:
        SrattnError: it raised something, crashed, or took longer than an hour.
    """
    order = json.dumps(
        {"module": module, "function": function, "arguments": arguments, "path": sys.path, "parent": os.getpid()}
    )
    command = [sys.executable, "-c", "from srattn.export.child import obey; obey()"]
    try:
        done = _run(command, order)
    except subprocess.TimeoutExpired:
        raise SrattnError(f"{who} took longer than {_TIMEOUT / 60:.0f} minutes; nothing was written") from None
    steps = [line for line in done.stdout.splitlines() if line.startswith(_STEP)]
    who = steps[-1].removeprefix(_STEP) if steps else who
    if done.returncode < 0:
        name = signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
        raise SrattnError(f"{who} crashed ({name.lower()}); nothing was written: choose another --format or --size")
    answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not answers:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "without a word")
        raise SrattnError(f"{who} ended with {done.returncode}: {last.strip()[:300]}")
    answer = json.loads(answers[-1].removeprefix(_MARK))
    if "error" in answer:
        raise SrattnError(answer["error"] if answer["ours"] else f"{who} failed: {answer['error']}")
    return answer["result"]


def _run(command: list[str], order: str) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    # A session of its own: its compilers are ended with it.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as child:
        try:
            out, err = child.communicate(order, timeout=_TIMEOUT)
        except BaseException:  # Ctrl-C and SIGTERM included
            _end(child)
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def _end(child: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def tell(step: str) -> None:
    """In the child: what it does now, for the error if it comes to one."""
    print(f"\n{_STEP}{step}", flush=True)


def obey() -> None:
    """In the child: does what standard input orders, and prints the answer as one line."""
    order = json.load(sys.stdin)
    sys.path[:] = order["path"]
    if hasattr(os, "killpg"):
        threading.Thread(target=_end_with, args=(order["parent"],), daemon=True).start()
    try:
        function = getattr(importlib.import_module(order["module"]), order["function"])
        answer = {"result": function(**order["arguments"])}
    except Exception as error:
        first: BaseException = error
        while first.__cause__ is not None and not isinstance(first, SrattnError):
            first = first.__cause__
        text = " ".join(str(first).split())[:400] or type(first).__name__
        ours = isinstance(first, SrattnError)
        answer = {"error": text if ours else f"{type(first).__name__}: {text}", "ours": ours}
    print(f"\n{_MARK}{json.dumps(answer)}", flush=True)


def _end_with(parent: int) -> None:
    """In the child: ends it and what it started once the parent is gone, which SIGKILL gives no time to do it."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.killpg(0, signal.SIGKILL)
