"""Requests made up from the service's own description: none may break it, and answers are as described."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srattn.engine.weights import LoadedRun
from srattn.explain import attention
from srattn.serve import Options, make_app

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
schemathesis = pytest.importorskip("schemathesis", reason="the fuzzer is not installed")


@pytest.fixture(scope="module")
def described(tiny: LoadedRun) -> Iterator[Any]:
    """The service in this process on a free port, and its description as schemathesis reads it."""
    from srattn.serve.server import bind, url_of

    app = make_app(tiny, Options(max_bytes=1 << 20, max_wait_ms=0), attention)
    bound = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, lifespan="on", log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield schemathesis.openapi.from_url(f"{url_of(bound)}/openapi.json")
    server.should_exit = True
    thread.join(60)


@pytest.mark.parametrize("made", ["fitting", "unfitting"])
@pytest.mark.parametrize("path", ["/predict", "/embed", "/explain"])
def test_made_up_requests(described: Any, picture_of: Callable[..., bytes], path: str, made: str) -> None:
    """Fitting requests have real pictures among their bodies; unfitting ones break the description somewhere."""
    from schemathesis.specs.openapi import checks as openapi

    checks = [
        schemathesis.checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_schema_conformance,
        openapi.negative_data_rejection,
    ]
    # Chosen anew for each draw, so that pictures come often enough.
    pictures = st.sampled_from([picture_of(), picture_of("red", (3, 90), "JPEG"), b"GIF89a"]) | st.binary(max_size=200)
    schemathesis.openapi.media_type("image/*", pictures)
    mode = schemathesis.GenerationMode.POSITIVE if made == "fitting" else schemathesis.GenerationMode.NEGATIVE
    codes: Counter[int] = Counter()

    @given(case=described[path]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None)
    def run(case: Any) -> None:
        response = case.call()
        codes[response.status_code] += 1
        case.validate_response(response, checks=checks)

    run()
    assert codes[200] > 0 if made == "fitting" else any(code >= 400 for code in codes), codes
