"""Trained models on the Hugging Face hub: `from_pretrained`, `save_pretrained` and a push, by the hub's own mixin.

A repository, or a folder of the same form, holds `model.safetensors` in our layout, whose metadata say all that is
needed, the same as `config.json`, and the model card. Nothing in it is ever executed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srattn.convert.reach import reach_hub
from srattn.engine import run_folder
from srattn.engine.card import LIBRARY, make_card
from srattn.engine.foreign import CLASSIFIES
from srattn.engine.open_model import open_model
from srattn.engine.weights import LoadedRun, load_run, save_weights
from srattn.errors import SrattnError, missing_extra
from srattn.files import atomic_dir

_log = logging.getLogger(__name__)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Any:
    """A model of a hub repository, or of a folder that `save_pretrained` wrote, in eval mode.

    It is a module from normalised images (B, C, H, W) to the model's outputs: logits of classes, of pixels (B, classes,
    h, w), rows of boxes, or as its `task` has them. It has `model` (the backbone, or the whole model of the task),
    `task`, `labels`, `palette`, `preprocess`, `run` (what `predict_mask` and `predict_boxes` take),
    `save_pretrained(folder)` and `push_to_hub(repo)`.

    Args:
        name: OWNER/NAME, or a folder.
        revision: branch, tag or commit; the main branch by default.
        token, cache_dir, local_files_only: as huggingface_hub takes them.

    Raises:
        SrattnError: it cannot be reached, or holds no model of ours.
    """
    kind = _class()
    name = os.fspath(name)
    if not os.path.isdir(name) and name.count("/") != 1:
        raise SrattnError(f"{name} is neither a folder nor OWNER/NAME on the hub")
    try:
        return kind.from_pretrained(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only or _is_out_of_reach(name, revision, cache_dir),
            device=device,
        )
    except SrattnError:
        raise
    except Exception as error:  # the hub, its cache and the network fail in many kinds
        raise SrattnError(f"cannot get {name} from the Hugging Face hub: {_reason(error)}") from error


def _is_out_of_reach(name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None) -> bool:
    """Whether a model that lies in the hub's cache is to be taken from there, since the hub does not answer.

    Raises:
        SrattnError: the hub does not answer, and the cache has no such model.
    """
    from huggingface_hub import try_to_load_from_cache

    if os.path.isdir(name):
        return False
    cache = None if cache_dir is None else os.fspath(cache_dir)
    try:
        reach_hub()
    except SrattnError as error:
        if isinstance(try_to_load_from_cache(name, run_folder.WEIGHTS, cache, revision), str):
            _log.info("%s, as the hub's cache has it: %s", name, error)
            return True
        raise SrattnError(
            f"cannot get {name} from the Hugging Face hub: {error}. Without a network, give a folder that "
            f"srattn.save_pretrained or `srattn push --folder` wrote, or put the model into the hub's cache "
            f"(HF_HUB_CACHE)"
        ) from error
    return False


def save_pretrained(run: LoadedRun | str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Writes a run, or what `open_model` opens, as a folder in the form of a hub repository.

    Raises:
        SrattnError: the folder exists, or there is no such model.
    """
    _pretrained(run).save_pretrained(folder)
    return Path(folder)


def push(
    run: LoadedRun | str | os.PathLike[str],
    repo: str,
    *,
    private: bool = True,
    branch: str | None = None,
    message: str = "A model of srattn",
    token: str | None = None,
) -> str:
    """Makes the repository, if there is none, and uploads the model and its card in one commit; returns the address.

    Raises:
        SrattnError: no such model, a name that is none, or the hub refuses.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise SrattnError(f"a repository is called OWNER/NAME, got {repo!r}")
    model = _pretrained(run)
    try:
        reach_hub()
    except SrattnError as error:
        raise SrattnError(
            f"cannot push to {repo}: {error}. Without a network, write a folder with `srattn push --folder`, which can "
            f"be uploaded from elsewhere"
        ) from error
    try:
        made = model.push_to_hub(repo, private=private, branch=branch, commit_message=message, token=token)
    except SrattnError:
        raise
    except Exception as error:
        raise SrattnError(f"cannot push to {repo}: {_reason(error)}") from error
    return str(made)


def _pretrained(run: LoadedRun | str | os.PathLike[str]) -> Any:
    kind = _class()
    loaded = run if isinstance(run, LoadedRun) else open_model(os.fspath(run))
    answers = int(getattr(loaded.model, "num_classes", len(loaded.classes)))
    if loaded.task == CLASSIFIES and not loaded.classes:
        raise SrattnError(f"{loaded.path} is a backbone without a head; the hub's form is for models that answer")
    if answers != len(loaded.classes):
        raise SrattnError(
            f"{loaded.path} gives {answers} output(s) for {len(loaded.classes)} classes; the hub's form has one each"
        )
    return kind(loaded)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@functools.lru_cache(maxsize=1)
def _class() -> Any:
    """The class, made when it is first wanted: huggingface_hub is an extra.

    Raises:
        SrattnError: it is not installed.
    """
    try:
        from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
    except ModuleNotFoundError as error:
        raise missing_extra("huggingface_hub", "hub") from error

    class Pretrained(nn.Module, ModelHubMixin, library_name=LIBRARY):
        """A trained model with its task, labels and preprocessing; see `from_pretrained`."""

        def __init__(self, run: LoadedRun) -> None:
            super().__init__()
            self.run = run
            self.model, self.labels, self.preprocess = run.model, run.classes, run.preprocess
            self.task, self.palette = run.task, run.palette

        def forward(self, images: Tensor) -> Tensor:
            """Normalised images (B, C, H, W) to logits (B, classes), or to what the model of another task gives."""
            return self.model(images)

        def save_pretrained(self, save_directory: Any, **options: Any) -> Any:
            """A new folder, whole or not at all."""
            with atomic_dir(save_directory) as aside:
                result = super().save_pretrained(aside, **options)
            return result

        def _save_pretrained(self, save_directory: Path) -> None:
            save_weights(
                save_directory / run_folder.WEIGHTS,
                self.model,
                self.labels,
                self.preprocess,
                task=self.task,
                palette=self.palette,
                of_255=self.run.of_255,
            )
            facts = {
                "library_name": LIBRARY,
                "task": self.task,
                "model": self.model.config,
                "norm_eps": self.model.norm_eps,
                "edge": self.model.edge,
                "classes": self.labels,
                "preprocess": self.preprocess.to_dict(),
                **({} if self.palette is None else {"colours": [list(colour) for colour in self.palette.colours]}),
            }
            run_folder.write_text(
                save_directory / "config.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
            )

        @classmethod
        def _from_pretrained(cls, *, model_id: str, device: Any = "cpu", **options: Any) -> Any:
            if os.path.isdir(model_id):
                file = Path(model_id) / run_folder.WEIGHTS
                if not file.is_file():
                    raise SrattnError(f"{model_id} has no {run_folder.WEIGHTS}")
            else:
                wanted = ("revision", "cache_dir", "force_download", "token", "local_files_only")
                given = {key: options[key] for key in wanted if key in options}
                file = Path(hf_hub_download(model_id, run_folder.WEIGHTS, **given))
            return cls(load_run(file, device))

        def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
            return ModelCard(make_card(self.run))

    return Pretrained
