"""The hub: a folder of its form, and push and from_pretrained against a stub of its API on this machine."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import srattn
from srattn import SrattnError
from srattn.data.palette import Palette
from srattn.data.preprocess import Preprocess
from srattn.engine.card import make_card
from srattn.engine.card_words import use_of, words_of
from srattn.engine.hub import push
from srattn.engine.open_model import open_model, task_of
from srattn.engine.weights import LoadedRun, save_weights
from srattn.tasks.models import build_task_model
from srattn.tasks.registry import list_tasks

pytest.importorskip("huggingface_hub")

CLASSES = ["ant", "b`ee", "cät"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with what a card is written from."""
    folder = tmp_path_factory.mktemp("runs") / "ants-1"
    numbers: dict[str, Any] = {"embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "depths": (1, 1)}
    model = srattn.create_model("pvt_v2_b0", num_classes=3, sr_ratios=(2, 1), **numbers).eval()
    folder.mkdir()
    save_weights(folder / "model.safetensors", model, CLASSES, Preprocess(size=(40, 40)))
    (folder / "config.yaml").write_text("data: /home/someone/ants\nepochs: 7\nout: /home/someone/runs/ants-1\n")
    result = {"accuracy": 0.75, "loss": 0.5, "data": "/home/someone/ants", "train_images": 90, "val_images": 20}
    (folder / "result.json").write_text(json.dumps({**result, "epochs": 7, "parameters": 1234}))
    return folder


def check_same(model: Any, run: Path) -> None:
    images = torch.randn(2, 3, 40, 40)
    loaded = open_model(str(run))
    with torch.inference_mode():
        assert torch.equal(model(images), loaded.model(images))
    assert (model.labels, model.preprocess) == (loaded.classes, loaded.preprocess)


def test_a_folder_there_and_back(run: Path, tmp_path: Path) -> None:
    folder = srattn.save_pretrained(run, tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = srattn.from_pretrained(folder)
    check_same(model, run)
    assert open_model(str(folder)).classes == CLASSES
    assert json.loads((folder / "config.json").read_text())["classes"] == CLASSES
    model.save_pretrained(tmp_path / "again")
    check_same(srattn.from_pretrained(tmp_path / "again"), run)
    with pytest.raises(SrattnError, match="exists and is not overwritten"):
        srattn.save_pretrained(run, folder)


def test_the_card_is_written_from_the_run(run: Path, tmp_path: Path) -> None:
    text = (srattn.save_pretrained(run, tmp_path / "saved") / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "srattn" and header["pipeline_tag"] == "image-classification"
    measured = header["model-index"][0]["results"][0]
    assert measured["metrics"][0]["value"] == 0.75 and measured["dataset"]["name"] == "ants"
    for part in ("## Data", "## Result", "## Recipe", "## Plan", "## Limits", "images for training: 90", "epochs: 7"):
        assert part in text
    assert "`b'ee`" in text, "a name does not end the code that it stands in"
    assert "/home/someone" not in text, "places on the machine stay there"


SMALL: dict[str, Any] = {
    "embed_dims": (8, 8, 16, 16),
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 1, 2, 2),
    "mlp_ratios": (2, 2, 2, 2),
    "sr_ratios": (2, 1, 1, 1),
}
DENSE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "segmentation": (
        "segformer",
        {"hidden": 16},
        {"headline": "miou", "miou": 0.625, "dice": 0.75, "per_class_iou": {"ant": 0.5, "b`ee": 0.75, "cät": None}},
    ),
    "detection": (
        "fcos",
        {"width": 16, "convs": 1},
        {"headline": "map50", "map50": 0.625, "map": 0.5, "per_class_map50": {"ant": 0.5, "b`ee": 0.75}},
    ),
    "depth": ("glpn", {"hidden": 16, "max_depth": 80.0}, {"headline": "delta1", "abs_rel": 0.5, "delta1": 0.625}),
    "pose": (
        "simcc",
        {},
        {"headline": "oks_ap", "oks_ap": 0.625, "pck": 0.75, "per_joint_pck": {"ant": 0.5, "b`ee": 0.75}},
    ),
}
TAGS = {
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "depth": "depth-estimation",
    "pose": "keypoint-detection",
}
METRICS = {
    "segmentation": ("mean_iou", "mIoU"),
    "detection": ("ap50", "AP50"),
    "depth": ("delta1", "pixels within 25 %"),
    "pose": ("oks_ap", "OKS AP"),
}


def classes_of(task: str) -> list[str]:
    return ["depth"] if task == "depth" else CLASSES


@pytest.fixture(scope="module", params=list(DENSE))
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a task other than classification."""
    task = request.param
    folder = tmp_path_factory.mktemp("runs") / task
    head, options, figures = DENSE[task]
    model: Any = build_task_model(task, "pvt_v2_b0", 3, head, options, img_size=64, **SMALL).eval()
    folder.mkdir()
    classes = classes_of(task)
    palette = Palette(tuple(classes), ((1, 2, 3), (4, 5, 6), (7, 8, 9))[: len(classes)])
    seen = Preprocess(size=(64, 64), fit="shorter" if task in ("segmentation", "depth") else "inside")
    save_weights(folder / "model.safetensors", model, classes, seen, task=task, palette=palette)
    (folder / "config.yaml").write_text(f"task: {task}\ndata: /home/someone/ants\n")
    result = {"task": task, **figures, "data": "/home/someone/ants", "val_images": 20, "seconds": 1.5}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_dense_model_there_and_back(dense: Path, tmp_path: Path) -> None:
    task, loaded = dense.name, open_model(str(dense))
    folder = srattn.save_pretrained(dense, tmp_path / "saved")
    facts = json.loads((folder / "config.json").read_text())
    assert facts["task"] == task and facts["colours"][0] == [1, 2, 3]
    assert facts["model"] == json.loads(json.dumps(loaded.model.config))
    model = srattn.from_pretrained(folder)
    assert (model.task, model.run.task, model.labels) == (task, task, classes_of(task))
    assert model.palette == loaded.palette and model.preprocess == loaded.preprocess
    assert task_of(str(folder)) == task and open_model(str(folder)).task == task
    images = torch.randn(1, 3, 64, 64 if task == "pose" else 80)
    with torch.inference_mode():
        assert torch.equal(model(images), loaded.model(images))
    assert (folder / "model.safetensors").read_bytes() == (dense / "model.safetensors").read_bytes()


def test_the_card_of_a_dense_model(dense: Path, tmp_path: Path) -> None:
    task = dense.name
    text = (srattn.save_pretrained(dense, tmp_path / "saved") / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["pipeline_tag"] == TAGS[task]
    measured = header["model-index"][0]["results"][0]
    kind = METRICS[task]
    assert measured["task"]["type"] == TAGS[task]
    assert measured["metrics"] == [{"type": kind[0], "name": kind[1], "value": 0.625}]
    assert "lassif" not in text.replace("classification", ""), "nothing of classifiers"
    for part in (
        f"with a {DENSE[task][0]} head",
        *(() if task == "depth" else ("| ant | 0.5000 |", "| cät | - |", "`b'ee`")),
        "Of the backbone:",
        "MMACs",
        "| seconds | 1.5 |",
    ):
        assert part in text, part
    first = DENSE[task][2]["headline"]
    others = [key for key, value in DENSE[task][2].items() if isinstance(value, float) and key != first]
    assert text.index(f"| {first} | 0.625 |") < min(text.index(f"| {key} |") for key in others), "the headline first"
    seen = "shorter side at 64" if task in ("segmentation", "depth") else "within 64x64"
    assert seen in text.split("## Limits")[1]
    assert "/home/someone" not in text


def test_the_cards_code_runs(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    srattn.save_pretrained(dense, "saved")
    Image.effect_noise((90, 61), 60).save("photo.jpg")
    code = (tmp_path / "saved" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("REPO", "saved"), found)
    names = {"segmentation": "mask", "detection": "boxes", "depth": "depth", "pose": "joints"}
    shape = tuple(found[names[dense.name]].shape)
    assert shape[1:] == (6,) if dense.name == "detection" else shape == {"pose": (1, 3, 3)}.get(dense.name, (61, 90))


def test_every_task_has_its_words() -> None:
    run = LoadedRun(srattn.create_model("pvt_v2_b0", **SMALL), ["a"], Preprocess(), {}, Path("here"))
    for task in list_tasks():
        text = make_card(dataclasses.replace(run, task=task))
        header = yaml.safe_load(text.split("---")[1])
        assert header["pipeline_tag"] == words_of(task).pipeline is not None
        compile(use_of(dataclasses.replace(run, task=task)), task, "exec")
        assert "{" not in text.split("## Data")[0].split("---")[2], "nothing is left to fill in"
    text = make_card(dataclasses.replace(run, task="of another package"))
    assert "pipeline_tag" not in text and "A model for of another package of 1 classes" in text


def test_what_a_checkpoint_holds_goes_to_the_hub_as_it_is(tmp_path: Path) -> None:
    model: Any = build_task_model("detection", "pvt_v2_b0", 2, "fcos", {"width": 16, "convs": 1}, **SMALL)
    folder = srattn.save_pretrained(srattn.save_checkpoint(model, tmp_path / "x.pth"), tmp_path / "hub")
    assert srattn.from_pretrained(folder).task == "detection"
    body = srattn.create_model("pvt_v2_b0", num_classes=0, **SMALL)
    with pytest.raises(SrattnError, match="a backbone without a head"):
        srattn.save_pretrained(srattn.save_checkpoint(body, tmp_path / "body.pth"), tmp_path / "no")


def test_what_cannot_be_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SrattnError, match="neither a folder nor OWNER/NAME"):
        srattn.from_pretrained("no-such-folder")
    with pytest.raises(SrattnError, match="OWNER/NAME, got 'ants'"):
        push(run, "ants")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SrattnError, match=r"has no model\.safetensors"):
        srattn.from_pretrained(tmp_path / "empty")


class Stub(BaseHTTPRequestHandler):
    """As much of the hub's API as one commit and its download need."""

    repos: dict[str, dict[str, bytes]]
    seen: list[tuple[str, str, str | None]]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, found: Any, status: int = 200) -> None:
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        body = self._body()
        self.seen.append(("POST", self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            order = json.loads(body)
            name = f"{order['organization']}/{order['name']}" if order.get("organization") else order["name"]
            self.repos.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}", "private": order.get("private")})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.repos[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({"error": "not here"}, 404)

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        path = self.path.partition("?")[0]
        name, _, rest = path.strip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        if file and file in self.repos.get(name, {}):
            data = self.repos[name][file]
            self.send_response(200)
            for key, value in (
                ("Content-Length", str(len(data))),
                ("X-Repo-Commit", COMMIT),
                ("ETag", f'"{hashlib.sha256(data).hexdigest()}"'),
            ):
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
        elif path.startswith("/api/models/") and path.removeprefix("/api/models/").split("/revision/")[0] in self.repos:
            name = path.removeprefix("/api/models/").split("/revision/")[0]
            siblings = [{"rfilename": each} for each in self.repos[name]]
            self._answer(
                {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": True, "tags": []}
            )
        else:
            self._answer({"error": "not here"}, 404)

    do_HEAD = do_GET


@pytest.fixture
def stub() -> Iterator[tuple[str, type[Stub]]]:
    """The address of a fresh stub, and what it holds and saw."""

    class Fresh(Stub):
        pass

    Fresh.repos, Fresh.seen = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Fresh
    server.shutdown()
    server.server_close()
    thread.join()


def test_push_and_from_pretrained_by_the_hubs_api(run: Path, stub: tuple[str, type[Stub]], tmp_path: Path) -> None:
    address, kept = stub
    code = """
import sys, torch, srattn
from srattn.cli.main import main
run, = sys.argv[1:]
assert main(["push", run, "someone/ants"]) == 0
model = srattn.from_pretrained("someone/ants")
torch.manual_seed(0)
images = torch.randn(2, 3, 40, 40)
from_folder = srattn.from_pretrained(run)
with torch.inference_mode():
    print(torch.equal(model(images), from_folder(images)), model.labels)
assert main(["push", run, "someone/ants", "--folder", "x"]) == 2
try:
    srattn.from_pretrained("someone/other")
except srattn.SrattnError as error:
    print(error)
from huggingface_hub import constants
constants.ENDPOINT = "http://127.0.0.1:9"
print("again", srattn.from_pretrained("someone/ants").labels)
"""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_of_a_test"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", code, str(run)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "True ['ant', 'b`ee', 'cät']" in done.stdout
    assert "cannot get someone/other from the Hugging Face hub" in done.stdout
    assert "again ['ant', 'b`ee', 'cät']" in done.stdout, "the hub is gone, its cache is there"
    assert "Retrying" not in done.stderr
    assert set(kept.repos["someone/ants"]) >= {"README.md", "config.json", "model.safetensors"}
    assert kept.repos["someone/ants"]["model.safetensors"] == (run / "model.safetensors").read_bytes()
    commits = [path for method, path, _ in kept.seen if method == "POST" and "/commit/" in path]
    assert commits == ["/api/models/someone/ants/commit/main"], "one commit"
    assert {key for method, _, key in kept.seen if method == "POST"} == {"Bearer hf_of_a_test"}


def test_a_hub_that_refuses_is_one_line(run: Path, tmp_path: Path) -> None:
    code = "import sys; from srattn.cli.main import main; sys.exit(main(['push', sys.argv[1], 'someone/ants']))"
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_TOKEN": "x"}
    env.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code, str(run)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("srattn: error: cannot push to someone/ants: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_hub_that_says_nothing_is_asked_once(run: Path, tmp_path: Path) -> None:
    """Its client would ask six times and more for each file; a way out is named instead."""
    pytest.importorskip("datasets")
    code = """
import sys, srattn
from srattn.cli.main import main
assert main(["push", sys.argv[1], "someone/ants"]) == 2
assert main(["data", "check", "hf:someone/ants"]) == 2
try:
    srattn.from_pretrained("someone/ants")
except srattn.SrattnError as error:
    print(error, file=sys.stderr)
"""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # connections are made, and nobody ever answers
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {**os.environ, "HF_ENDPOINT": place, "HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "1"}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "HF_TOKEN": "x"}
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE"):
            env.pop(name, None)
        command = [sys.executable, "-c", code, str(run)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        silent.setblocking(False)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 3, done.stderr
    for line, way in zip(done.stderr.splitlines(), ("push --folder", "hf:FOLDER", "save_pretrained"), strict=True):
        assert place in line and "HF_HUB_ETAG_TIMEOUT allows more" in line and way in line
    assert asked == 3
