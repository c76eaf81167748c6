"""Files from strangers: refused in words where they cannot be decoded, and nothing breaks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srattn.data.decode import BadImage, decode
from srattn.serve import Options, make_app
from tests.serve.fake import levels_run
from tests.serve.test_refusals import error_of

COUNT = 120
MOST_PIXELS = 100_000


@pytest.fixture
def files(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """The same as benchmarks/serve.py sends, fewer of them."""
    path = root / "benchmarks" / "serve.py"
    if not path.is_file():
        pytest.skip("the benchmarks are not part of this distribution")
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location("benchmark_serve", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("machine", None)
    return list(module.damaged(COUNT, seed=7))


def expected(data: bytes) -> set[int]:
    """The codes that a file may get, by what the decoder says of it without a service."""
    try:
        image = decode(data)
    except BadImage:
        return {413, 422}
    return {413} if image.width * image.height > MOST_PIXELS else {200}


def test_damaged_files(talk: Callable[..., Any], files: list[tuple[str, bytes]]) -> None:
    app = make_app(levels_run(), Options(max_pixels=MOST_PIXELS, max_bytes=1 << 20))

    async def work(client: Any) -> list[Any]:
        found = []
        for _, data in files:
            found.append(await client.post("/predict", content=data, headers={"content-type": "image/png"}))
            assert (await client.get("/health")).status_code == 200
        return found

    codes = set()
    for (kind, data), response in zip(files, talk(app, work), strict=True):
        assert response.status_code in expected(data), kind
        codes.add(response.status_code)
        if response.status_code != 200:
            assert error_of(response).startswith("image 1: "), kind
        if kind == "bomb PNG":
            assert response.status_code == 413
    assert {413, 422} <= codes
    assert app.state.service.gate.images == app.state.service.gate.bytes == 0
