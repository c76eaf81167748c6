"""Steps that run in a process of their own: a foreign compiler that crashes takes only that process with it."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from typing import Any

from srattn.errors import SrattnError

_TIMEOUT = 3600.0
_MARK, _STEP = "srattn-answer ", "srattn-step "


def in_child(who: str, module: str, function: str, **arguments: Any) -> Any:
    """What `module.function(**arguments)` returns in a fresh process; arguments and result are JSON-able.

    Args:
        who: names the work in an error, until the child calls `tell` with the name of a step.

    Raises:
        SrattnError: it raised something, crashed, or took longer than an hour.
    """
    order = json.dumps({"module": module, "function": function, "arguments": arguments, "path": sys.path})
    command = [sys.executable, "-c", "from srattn.export.child import obey; obey()"]
    try:
        done = subprocess.run(command, input=order, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
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


def tell(step: str) -> None:
    """In the child: what it does now, for the error if it comes to one."""
    print(f"\n{_STEP}{step}", flush=True)


def obey() -> None:
    """In the child: does what standard input orders, and prints the answer as one line."""
    order = json.load(sys.stdin)
    sys.path[:] = order["path"]
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
