"""``srattn serve``: a model behind HTTP on this machine, with a page to try it."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from srattn.cli.embed import EXPORTS, MODEL_HELP, open_on
from srattn.cli.explain import SOURCE_HELP
from srattn.errors import SrattnError

if TYPE_CHECKING:
    import jsonargparse

    from srattn.engine.weights import LoadedRun

_TOKEN = "SRATTN_TOKEN"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", type=str, help=f"{MODEL_HELP}, or a file of srattn export; without it the model in the box"
    )
    parser.add_argument("--source", type=str | None, help=SOURCE_HELP)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen at; 0.0.0.0 for everybody")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one, and says which")
    parser.add_argument("--size", type=int | None, help="side of the images in pixels, where not the model's own")
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, mps; auto takes cuda where there is one")
    parser.add_argument("--max_batch", type=int, default=16, help="images that the model is given at once, at most")
    parser.add_argument("--max_wait_ms", type=float, default=3.0, help="how long an image waits for others")
    parser.add_argument("--queue", type=int, default=256, help="images accepted and not yet answered; beyond them 503")
    parser.add_argument("--max_mb", type=float, default=16.0, help="MiB of a request, at most")
    parser.add_argument("--max_pixels", type=int, default=40_000_000, help="of a picture, at most")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for a body to arrive, and for its answer")
    parser.add_argument("--num_workers", type=int, default=2, help="threads that decode pictures")
    parser.add_argument(
        "--token_file", type=str | None, help=f"file with the token that clients have to send; or set {_TOKEN}"
    )


def run(args: jsonargparse.Namespace) -> int:
    if args.size is not None and args.size < 1:
        raise SrattnError(f"--size must be at least 1, got {args.size}")
    if not 0 <= args.port <= 65535:
        raise SrattnError(f"--port must be from 0 to 65535, got {args.port}")
    if not 0 < args.max_mb < 4096:
        raise SrattnError(f"--max_mb must be above 0 and below 4096, got {args.max_mb:g}")
    token = token_of(args.token_file)

    for package in ("fastapi", "uvicorn", "python_multipart"):
        importlib.import_module(package)  # the last is looked for by the others only when a form comes

    from srattn.serve import Options, make_app, serve
    from srattn.serve.server import bind, url_of

    options = Options(
        max_batch=args.max_batch,
        max_wait_ms=args.max_wait_ms,
        queue=args.queue,
        max_bytes=max(1, int(args.max_mb * (1 << 20))),
        max_pixels=args.max_pixels,
        timeout_s=args.timeout,
        workers=args.num_workers,
        token=token,
    )

    from srattn.explain import attention

    # Pillow warns of damaged files, which the answer says already.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    bound = bind(args.host, args.port)
    with bound:
        args.batch_size = options.max_batch
        loaded = open_on(args)
        # A file that resizes pictures itself may take them one by one only.
        options = dataclasses.replace(options, max_batch=args.batch_size)
        app = make_app(loaded, options, attention, _source(args))

        def ready() -> None:
            name = "the model in the box" if args.model is None else args.model
            print(f"srattn: {name} answers at {url_of(bound)}", flush=True)
            if args.host not in _LOOPBACK and token is None:
                print(
                    f"srattn: whoever reaches it may use it; --token_file or {_TOKEN} asks for a token", file=sys.stderr
                )

        serve(app, bound, ready, stop_s=2 * options.timeout_s + 5)
    return 0


def _source(args: jsonargparse.Namespace) -> LoadedRun | None:
    """What an exported file was made of: what --source names, else what is found, else nothing."""
    if Path(args.model or "").suffix not in EXPORTS:
        if args.source is not None:
            raise SrattnError(f"--source goes with an exported file, got the model {args.model or 'in the box'}")
        return None
    from srattn.engine.device import pick_device
    from srattn.export.source import open_source

    try:
        return open_source(args.model, args.source, pick_device(args.device), args.size)
    except SrattnError as error:
        if args.source is not None:
            raise
        print(f"srattn: without vectors and attention maps: {error}", file=sys.stderr)
        return None


def token_of(file: str | None) -> str | None:
    """The token of a file, else of the environment; None if there is neither.

    Raises:
        SrattnError: an empty one.
    """
    if file is None:
        text, source = os.environ.get(_TOKEN), _TOKEN
    else:
        text, source = Path(file).read_text(encoding="utf-8", errors="replace"), file
    if text is None:
        return None
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise SrattnError(f"{source} holds no token: one line of printable ASCII is expected")
    return token
