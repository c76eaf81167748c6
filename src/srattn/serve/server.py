"""Runs the application on one socket until a signal, and then finishes what it accepted."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import Callable
from typing import Any

from srattn.errors import SrattnError


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there from now on; port 0 is any free one.

    Raises:
        SrattnError: not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise SrattnError(f"{host}:{port} is no address to listen at ({_reason(error)})") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        foreign = error.errno == errno.EADDRNOTAVAIL
        way = "give a --host of this machine, as 127.0.0.1, or 0.0.0.0 for all" if foreign else "give another --port"
        raise SrattnError(f"{host}:{port} cannot be listened at ({_reason(error)}); {way}") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """The address for a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(app: Any, bound: socket.socket, ready: Callable[[], None] = lambda: None, stop_s: float = 60.0) -> None:
    """Answers until SIGTERM or SIGINT, which stop the accepting; what was accepted is finished first.

    SIGTERM then returns; SIGINT raises KeyboardInterrupt, as it does anywhere.

    Args:
        app: of `make_app`.
        ready: called when everything is prepared.
        stop_s: seconds after which what is not finished is given up.
    """
    import uvicorn

    app.state.service.start()  # a model that fails says so here, not through the server's log
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(stop_s)),
        backlog=2048,
    )
    # uvicorn raises the signals that stopped it again, for the handlers that were there before it.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ready()
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)
        app.state.service.stop()
        bound.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
