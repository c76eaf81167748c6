"""The ASGI application: routes, limits and the page."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from srattn.engine.weights import LoadedRun
from srattn.errors import nearest
from srattn.serve import schema
from srattn.serve.attention import Maps, to_png
from srattn.serve.envelope import Envelope
from srattn.serve.fault import Fault
from srattn.serve.intake import read_pictures
from srattn.serve.metrics import CONTENT_TYPE
from srattn.serve.options import Options
from srattn.serve.people import boxes_of
from srattn.serve.picture import Picture
from srattn.serve.service import Service
from srattn.version import __version__

Value = TypeVar("Value")

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PATHS = (*_PAGE, "/predict", "/embed", "/explain", "/model", "/health", "/metrics", "/openapi.json")
_BEARER = HTTPBearer(auto_error=False)
_ASKED = (400, 408, 413, 415, 422, 500, 503, 504)


def make_app(
    run: LoadedRun,
    options: Options | None = None,
    attention: Maps | None = None,
    source: LoadedRun | None = None,
) -> FastAPI:
    """The application for one model: /predict, /embed, /explain, /model, /health, /metrics, /openapi.json and a page.

    Its thread starts with the application (its lifespan), or by `app.state.service.start()`.

    Args:
        run: of `load_run`, `open_model` or `open_export`; it belongs to the service from now on.
        attention: the module `srattn.explain.attention`; without it /explain answers 404.
        source: of `srattn.export.source.open_source`, for an exported file, which has neither vectors nor maps.

    Raises:
        SrattnError: a model that cannot be served.
    """
    options = Options() if options is None else options
    service = Service(run, options, attention, source)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)

    guarded = [] if options.token is None else [Depends(_guard(options.token))]
    app = FastAPI(
        title="srattn",
        version=__version__,
        description=f'The model {service.model}. Every error is `{{"error": one line}}`.',
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Envelope, metrics=service.metrics, paths=_PATHS, drain=2 * options.max_bytes)
    _add_errors(app)
    _add_answers(app, service, guarded)
    _add_facts(app, service, guarded)
    _add_page(app)
    return app


def _add_answers(app: FastAPI, service: Service, guarded: Sequence[Any]) -> None:
    codes = _ASKED if not guarded else (*_ASKED, 401)

    async def pictures_of(
        request: Request, names: Sequence[str], most: int | None, answer: Callable[[list[Picture]], Awaitable[Value]]
    ) -> Value:
        """What `answer` makes of the pictures, within the limits of the service."""
        for name in request.query_params:
            if name not in names:
                raise Fault(422, f"unknown option {name!r}{nearest(name, names)}")
        options = service.options
        with service.gate.enter() as ticket:
            reading = read_pictures(request, options, ticket, most)
            pictures = await _within(options.timeout_s, reading, Fault(408, "the body did not arrive in time"))
            return await _within(options.timeout_s, answer(pictures), Fault(504, "the answer took too long"))

    async def predict(request: Request, **options: Any) -> JSONResponse:
        most = None if options.get("people") is None else 1  # whose boxes they are
        answers = await pictures_of(request, tuple(options), most, lambda found: service.predict(found, **options))
        return JSONResponse({"task": service.task.task, "model": service.model, "answers": answers})

    summary, predictions = schema.PREDICTIONS[service.task.task]
    app.post(
        "/predict",
        name="predict",
        dependencies=guarded,
        summary=summary,
        description="One picture as raw bytes, several as multipart files or as base64 in JSON. If one of them cannot "
        "be read, none is answered and the error names it.",
        responses={200: {"model": predictions}, **schema.errors(*codes)},
        openapi_extra=schema.picture_body(several=True),
    )(_with_options(service, predict))

    @app.post(
        "/embed",
        dependencies=guarded,
        summary="Pooled vectors of pictures",
        responses={200: {"model": schema.Embeddings}, **schema.errors(*codes, 404)},
        openapi_extra=schema.picture_body(several=True),
    )
    async def embed(request: Request) -> JSONResponse:
        """What a classifier reads, for each picture."""
        answers = await pictures_of(request, (), None, service.embed)
        return JSONResponse({"model": service.model, "length": len(answers[0]["vector"]), "answers": answers})

    @app.post(
        "/explain",
        dependencies=guarded,
        summary="What a point of a picture attends to",
        responses={
            200: {"model": schema.Attention, "content": {"image/png": {}}, "description": "shares, or a picture"},
            **schema.errors(*codes, 404),
        },
        response_class=JSONResponse,
        openapi_extra=schema.picture_body(several=False),
    )
    async def explain(
        request: Request,
        x: Annotated[float, Query(ge=0, le=1, description="share of the picture's width")] = 0.5,
        y: Annotated[float, Query(ge=0, le=1, description="share of the picture's height")] = 0.5,
        stage: Annotated[int | None, Query(ge=1, description="from 1; the last one by default")] = None,
        block: Annotated[int | None, Query(ge=1, description="from 1; the last of the stage by default")] = None,
        head: Annotated[int | None, Query(ge=1, description="from 1; the mean of all by default")] = None,
        format: Annotated[Literal["json", "png"], Query(description="shares, or a picture")] = "json",
    ) -> Response:
        """The attention of one point, as shares of a grid or as a picture of what the model sees."""
        names = ("x", "y", "stage", "block", "head", "format")
        seen, order, answer = await pictures_of(
            request, names, 1, lambda pictures: service.explain(pictures[0], x, y, stage, block, head)
        )
        if format == "png":
            return Response(await asyncio.to_thread(to_png, seen, answer, order.point), media_type="image/png")
        return JSONResponse(
            {
                "name": seen.name,
                "width": seen.width,
                "height": seen.height,
                "model": service.model,
                "stage": order.stage + 1,
                "block": order.block + 1,
                "head": None if order.head is None else order.head + 1,
                "token": answer.token,
                "grid": answer.weights.shape,
                "box": seen.box,
                "weights": [[float(f"{share:.6g}") for share in row] for row in answer.weights.tolist()],
            }
        )


def _with_options(
    service: Service, predict: Callable[..., Awaitable[JSONResponse]]
) -> Callable[..., Awaitable[JSONResponse]]:
    """`predict` with the options that the task has."""

    async def classes(
        request: Request, top: Annotated[int, Query(ge=1, description="classes of each picture")] = 5
    ) -> JSONResponse:
        return await predict(request, top=top)

    async def masks(request: Request) -> JSONResponse:
        return await predict(request)

    async def boxes(
        request: Request, threshold: Annotated[float, Query(ge=0, le=1, description="the least score of a box")] = 0.3
    ) -> JSONResponse:
        return await predict(request, threshold=threshold)

    async def depths(
        request: Request,
        drawing: Annotated[bool, Query(description="with a picture to look at, bright for near")] = False,
    ) -> JSONResponse:
        return await predict(request, drawing=drawing)

    async def joints(
        request: Request,
        people: Annotated[
            str | None,
            Query(
                description="boxes of the people on one picture in pixels, x1,y1,x2,y2;x1,y1,x2,y2; without them a "
                "picture is one person",
                examples=["10,20,110,220;150,15,240,230"],
            ),
        ] = None,
    ) -> JSONResponse:
        return await predict(request, people=None if people is None else boxes_of(people, service.options.images))

    handlers = {
        "classification": classes, "segmentation": masks, "detection": boxes, "depth": depths, "pose": joints,
    }  # fmt: skip
    return handlers[service.task.task]


def _add_facts(app: FastAPI, service: Service, guarded: Sequence[Any]) -> None:
    refused = schema.errors(401) if guarded else {}

    @app.get(
        "/model",
        dependencies=guarded,
        summary="What can be asked of this service",
        responses={200: {"model": schema.ModelFacts}, **refused},
    )
    async def model() -> JSONResponse:
        options = service.options
        return JSONResponse(
            {
                "task": service.task.task,
                "model": service.model,
                "version": __version__,
                **service.task.facts(),
                "size": service.run.preprocess.size,
                "embeds": service.embeds,
                "stages": [vars(stage) for stage in service.stages],
                "max_images": options.images,
                "max_bytes": options.max_bytes,
                "max_pixels": options.max_pixels,
            }
        )

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the service answers", responses={200: {"model": schema.Health}})
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get(
        "/metrics",
        dependencies=guarded,
        summary="Figures for Prometheus",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {}}}, **refused},
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    folder = files("srattn.serve").joinpath("page")

    def add(path: str, name: str, kind: str) -> None:
        content = folder.joinpath(name).read_bytes()
        headers = {"Content-Security-Policy": _PAGE_POLICY, "Cache-Control": "no-cache"}

        async def page() -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.get(path, include_in_schema=False)(page)

    for path, (name, kind) in _PAGE.items():
        add(path, name, kind)


def _add_errors(app: FastAPI) -> None:
    async def of_fault(_: Request, error: Exception) -> Response:
        assert isinstance(error, Fault)
        return error.response()

    async def of_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return Fault(error.status_code, str(error.detail), error.headers).response()

    async def of_option(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return Fault(422, f"{first['loc'][-1]}: {first['msg']}").response()

    app.add_exception_handler(Fault, of_fault)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(RequestValidationError, of_option)


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    expected = hashlib.sha256(token.encode()).digest()

    async def check(found: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        given = b"" if found is None else found.credentials.encode("utf-8", "surrogateescape")
        # Of hashes, so that neither content nor length of the token shows in the time.
        if not hmac.compare_digest(hashlib.sha256(given).digest(), expected):
            raise Fault(401, "send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    return check


async def _within(seconds: float, work: Awaitable[Value], fault: Fault) -> Value:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise fault from None
