"""Published weights: the table, and fetching them from a hub cache that the tests make themselves (no network)."""

import dataclasses
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import srattn
from srattn.convert import convert_state_dict, pretrained
from srattn.models.weights import WEIGHTS, Weights, find_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"embed_dims": (16, 32, 40, 64), "depths": (1, 1, 2, 1)}


def test_every_published_size_has_a_row():
    assert {row.model for row in WEIGHTS} == set(srattn.list_models(["pvt_*", "twins_*", "mit_*", "cvt_*", "mvitv2_*"]))
    for row in WEIGHTS:
        nvidia = row.model.startswith("mit_")
        assert row.licence == ("NVIDIA Source Code License for SegFormer" if nvidia else "Apache-2.0")
        assert row.commercial is not nvidia
        assert row.repo.count("/") == 1 and row.source.startswith("https://")
        assert 70 < row.top1 < 86 and row.classes == 1000
        prepared = row.preprocessing
        assert prepared.size == 224 and 0.8 < prepared.crop_pct <= 1 and prepared.interpolation == "bicubic"
        assert all(0 < value < 1 for value in (*prepared.mean, *prepared.std))


def row_of(name: str) -> Weights:
    row = find_weights(name)
    assert row is not None
    return row


def create(name, **options: Any) -> Any:
    return srattn.create_model(name, **options)


def make_cache(cache, repo, state, filename="model.safetensors"):
    """A hub cache as a download leaves it: refs, blobs, and snapshots that point to the blobs."""
    home = cache / f"models--{repo.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (home / part).mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    blob = home / "blobs" / "feedc0de"
    save_file({key: value.contiguous() for key, value in state.items()}, blob, metadata={"format": "pt"})
    (home / "snapshots" / COMMIT / filename).symlink_to(os.path.relpath(blob, home / "snapshots" / COMMIT))


def make_torch_cache(cache, repo, state, filename):
    """As `make_cache`, of a file that torch wrote."""
    home = cache / f"models--{repo.replace('/', '--')}"
    for part in ("refs", f"snapshots/{COMMIT}"):
        (home / part).mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    torch.save({key: value.contiguous() for key, value in state.items()}, home / "snapshots" / COMMIT / filename)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty hub cache, the hub's client in its offline mode, and no network for those who would ask."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def refuse(*args, **kwargs):
        raise AssertionError("a test asked the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return tmp_path / "hub"


def small_weights(monkeypatch, name, layout, classes=1000):
    """Weights of a small model in the hub's place of a published one, so that no test handles hundreds of megabytes."""
    options = {**SMALL, **({"img_size": 64} if name.startswith("pvt_t") else {})}
    model = create(name, num_classes=classes, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) - 0.5)
    return convert_state_dict(model.state_dict(), layout), options


def test_a_licence_that_forbids_commercial_use_is_told_once(offline, monkeypatch):
    monkeypatch.setattr(pretrained, "_told", set())
    row = row_of("mit_b0")
    state, options = small_weights(monkeypatch, "mit_b0", row.layout)
    make_torch_cache(offline, row.repo, state, row.file)
    with pytest.warns(UserWarning, match=r"mit_b0 \(nvidia/mit-b0\).*NVIDIA.*non-commercial use only") as told:
        model = create("mit_b0", pretrained=True, **options)
    assert len(told) == 1 and told[0].filename == __file__
    again = create("mit_b0", pretrained=True, **options)  # a second warning would be an error here
    assert model.edge == "floor" and again.norm_eps == {"block": 1e-5, "reduction": 1e-5, "patch": 1e-5}
    assert torch.equal(model.head.weight, state["classifier.weight"])


@pytest.mark.parametrize("name", ["pvt_v2_b0", "pvt_tiny"])
def test_weights_come_from_the_cache(name, offline, monkeypatch):
    row = row_of(name)
    state, options = small_weights(monkeypatch, name, row.layout)
    make_cache(offline, row.repo, state)
    model = create(name, pretrained=True, **options)
    assert all(
        torch.equal(value, state[key]) for key, value in convert_state_dict(model.state_dict(), row.layout).items()
    )
    reduction = 1e-6 if row.layout == "transformers" else 1e-5
    assert model.edge == "floor" and model.norm_eps["reduction"] == reduction


@pytest.mark.parametrize("name", ["pvt_v2_b0.in1k", "hf-hub:timm/pvt_v2_b0.in1k"])
def test_a_name_of_timm_has_the_same_weights(name, offline, monkeypatch):
    row = row_of("pvt_v2_b0")
    state, options = small_weights(monkeypatch, "pvt_v2_b0", row.layout)
    make_cache(offline, row.repo, state)
    model = create(name, pretrained=True, **options)
    assert torch.equal(model.head.weight, state["head.weight"]) and model.config["name"] == "pvt_v2_b0"


def test_what_the_user_asks_for_wins(offline, monkeypatch):
    row = row_of("pvt_v2_b0")
    state, options = small_weights(monkeypatch, "pvt_v2_b0", row.layout)
    make_cache(offline, row.repo, state)
    model = create("pvt_v2_b0", pretrained=True, num_classes=7, in_chans=1, edge="pad", **options)
    assert model.edge == "pad" and model.head.weight.shape == (7, 64)
    torch.testing.assert_close(
        model.stages[0].patch_embed.proj.weight, state["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    with torch.no_grad():
        assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    pyramid = create("pvt_v2_b0", pretrained=True, features_only=True, edge="error", **options)
    assert pyramid.model.edge == "error"
    assert torch.equal(pyramid.model.stages[0].norm.weight, state["stages.0.norm.weight"])
    assert create("pvt_v2_b0", pretrained=True, num_classes=0, **options).num_classes == 0


def test_position_embeddings_follow_the_image_size(offline, monkeypatch):
    row = row_of("pvt_tiny")
    state, options = small_weights(monkeypatch, "pvt_tiny", row.layout)
    make_cache(offline, row.repo, state)
    model = create("pvt_tiny", pretrained=True, **{**options, "img_size": (64, 128)})
    assert model.stages[0].position.weight.shape == (1, 16, 32, 16)


def test_weights_that_do_not_fit_the_overrides_are_refused(offline, monkeypatch):
    row = row_of("pvt_v2_b0")
    state, options = small_weights(monkeypatch, "pvt_v2_b0", row.layout)
    make_cache(offline, row.repo, state)
    with pytest.raises(
        srattn.SrattnError, match=r"stages\.0\.patch_embed\.proj\.weight.*\(16, 3, 7, 7\).*\(8, 3, 7, 7\)"
    ):
        create("pvt_v2_b0", pretrained=True, **{**options, "embed_dims": (8, 32, 40, 64)})


def test_offline_message_names_repository_file_and_way_out(offline):
    with pytest.raises(srattn.SrattnError) as caught:
        create("pvt_v2_b0", pretrained=True)
    message = str(caught.value)
    for part in (
        "model.safetensors",
        "timm/pvt_v2_b0.in1k",
        "HF_HUB_OFFLINE",
        "HF_HUB_CACHE",
        "srattn.load_checkpoint",
    ):
        assert part in message
    assert "\n" not in message


def test_a_hub_out_of_reach_is_asked_once(tmp_path):
    pytest.importorskip("huggingface_hub")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = f"http://127.0.0.1:{closed.getsockname()[1]}"
        proxies = ("http_proxy", "https_proxy", "all_proxy", "hf_hub_offline")
        environment = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
        environment |= {"HF_ENDPOINT": place, "HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "srattn", "predict", __file__, "--model", "pvt_v2_b0"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"{place} cannot be reached" in done.stderr


def test_what_is_cached_is_not_asked_for(offline, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    row = row_of("pvt_v2_b0")
    make_cache(offline, row.repo, {"weight": torch.ones(1)})
    assert pretrained.fetch(row).read_bytes()


def test_without_the_hub_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(srattn.SrattnError, match=r'pip install "srattn\[hub\]"'):
        create("pvt_v2_b0", pretrained=True)


def test_names_without_weights(monkeypatch):
    with pytest.raises(srattn.SrattnError, match="did you mean 'pvt_v2_b2_li'"):
        create("pvt_v2_b2li", pretrained=True)
    left = tuple(dataclasses.replace(row) for row in WEIGHTS if row.model != "pvt_large")
    monkeypatch.setattr("srattn.models.weights.WEIGHTS", left)
    with pytest.raises(srattn.SrattnError, match="no weights are published for pvt_large"):
        pretrained.create_model("pvt_large", pretrained=True)


def test_environment_alone_is_enough(tmp_path):
    """In a fresh process the hub's own variables find the cache; its client is not imported before it is needed."""
    pytest.importorskip("huggingface_hub")
    row = row_of("pvt_v2_b0")
    model = create("pvt_v2_b0", num_classes=1000)
    state = convert_state_dict(model.state_dict(), row.layout)
    make_cache(tmp_path, row.repo, state)
    save_file({"head": model.state_dict()["head.weight"]}, tmp_path / "expected.safetensors")
    script = """
import sys, torch, srattn
from safetensors.torch import load_file
srattn.create_model("pvt_v2_b0", num_classes=2)
assert "huggingface_hub" not in sys.modules
model = srattn.create_model("pvt_v2_b0", pretrained=True)
assert torch.equal(model.head.weight, load_file(sys.argv[1])["head"])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", script, str(tmp_path / "expected.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
