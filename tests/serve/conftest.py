"""A tiny model behind the application, and a way to talk to it without a network."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from PIL import Image

import srattn
from srattn.data.palette import Palette
from srattn.data.preprocess import Preprocess
from srattn.engine.weights import LoadedRun

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("python_multipart", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="the tests' client")

Value = TypeVar("Value")
Talk = Callable[..., Any]
CLASSES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture(scope="session")
def tiny() -> LoadedRun:
    """Two stages with one and two heads on 32x48 pixels; as `load_run` gives it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = srattn.create_model(
            "pvt_v2_b0", num_classes=5, embed_dims=(8, 16), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(2, 1),
            sr_ratios=(2, 1),
        )  # fmt: skip
    preprocess = Preprocess(size=(32, 48), fit="crop", crop_fraction=0.8)
    return LoadedRun(model.eval(), CLASSES, preprocess, {}, Path("tiny"))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def scenes() -> dict[str, LoadedRun]:
    """By task, a model of masks and one of boxes, which finds something."""
    from srattn.tasks.dense import segmentation_model
    from srattn.tasks.detection.model import fcos

    short = {"embed_dims": (4, 8), "num_heads": (1, 2), "mlp_ratios": (1, 1), "depths": (1, 1), "sr_ratios": (2, 1)}
    long = {"embed_dims": (4, 4, 8, 8), "num_heads": (1, 1, 2, 2), "mlp_ratios": (1,) * 4, "depths": (1,) * 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        masks = segmentation_model("pvt_v2_b0", 3, "segformer", {"hidden": 8}, **short)
        boxes: Any = fcos("pvt_v2_b0", 3, width=8, convs=1, levels=3, norm="none", **long)
        with torch.no_grad():
            boxes.head.classifier.weight.mul_(60)
            boxes.head.classifier.bias.fill_(-2.0)
    palette = Palette(("ant", "bee", "cat"), ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    return {
        task: LoadedRun(
            model.eval(), list(palette.names), Preprocess(size=(64, 64), fit=fit), {}, Path(task), task, palette
        )
        for task, model, fit in (("segmentation", masks, "shorter"), ("detection", boxes, "inside"))
    }  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def objects() -> LoadedRun:
    """A model of boxes and masks, which finds something."""
    from srattn.tasks.detection.model import mask_rcnn

    long = {"embed_dims": (4, 4, 8, 8), "num_heads": (1, 1, 2, 2), "mlp_ratios": (1,) * 4, "depths": (1,) * 4}
    numbers: dict[str, Any] = {"width": 16, "hidden": 16, "proposals": 30, "answers": 10, "mask_hidden": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = mask_rcnn("pvt_v2_b0", 3, **numbers, mask_convs=1, **long)
        with torch.no_grad():
            for name, weight in model.head.named_parameters():
                if "mask" in name or "class" in name:
                    weight.mul_(30)
    palette = Palette(("ant", "bee", "cat"), ((90, 90, 90), (200, 0, 0), (0, 0, 200)))
    preprocess = Preprocess(size=(64, 64), fit="inside")
    return LoadedRun(model.eval(), list(palette.names), preprocess, {}, Path("objects"), "detection", palette)


@pytest.fixture(scope="session")
def deep() -> dict[str, LoadedRun]:
    """By task, a model of depths and one of three joints."""
    from srattn.tasks.dense import glpn
    from srattn.tasks.pose.model import pose_model

    short = {"embed_dims": (4, 8), "num_heads": (1, 2), "mlp_ratios": (1, 1), "depths": (1, 1), "sr_ratios": (2, 1)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        depths: Any = glpn("pvt_v2_b0", hidden=8, **short)
        joints: Any = pose_model("pvt_v2_b0", 3, "heatmap", {"width": 8}, **short)
        with torch.no_grad():
            joints.head.classifier.weight.normal_()  # fresh heatmaps are nearly flat
    return {
        task: LoadedRun(model.eval(), names, Preprocess(size=(64, 64), fit=fit), {}, Path(task), task)
        for task, model, names, fit in (
            ("depth", depths, ["depth"], "shorter"),
            ("pose", joints, ["nose", "left_eye", "right_eye"], "inside"),
        )
    }  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def talk() -> Talk:
    """`talk(app, work)`: what `work(client)` returns, between the start and the stop of the application."""

    @contextlib.asynccontextmanager
    async def client_of(app: Any) -> AsyncIterator[Any]:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
                yield client

    def run(app: Any, work: Callable[[Any], Awaitable[Value]]) -> Value:
        async def whole() -> Value:
            async with client_of(app) as client:
                return await work(client)

        return asyncio.run(whole())

    return run


@pytest.fixture(scope="session")
def picture_of() -> Callable[..., bytes]:
    """`picture_of(colour or None for noise, size, format)`: the bytes of a file."""

    def make(colour: Any = None, size: tuple[int, int] = (60, 40), kind: str = "PNG", seed: int = 0) -> bytes:
        if colour is None:
            noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
            image = Image.frombytes("RGB", size, bytes(noise.flatten().tolist()))
        else:
            image = Image.new("RGB", size, colour)
        file = io.BytesIO()
        image.save(file, kind)
        return file.getvalue()

    return make
