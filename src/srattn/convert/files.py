"""Converting a checkpoint file into another layout; the model itself is never built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from srattn.convert import hf
from srattn.convert.head_numbers import ASSUMED, saved_backbone, saved_kind, saved_parts, told_parts
from srattn.convert.heads import Head
from srattn.convert.layouts import get_layout
from srattn.convert.layouts.mm_heads import AUXILIARY
from srattn.convert.layouts.transforms import Context
from srattn.convert.save import check_suffix, differences, extra_relu_lost, write_file, write_folder
from srattn.convert.source import Source, read_source
from srattn.convert.state import Ours, from_ours, to_ours
from srattn.convert.variants import TWINS_IN_NAME, infer, ratios_of
from srattn.errors import SrattnError
from srattn.models.registry import list_models, model_options, variant
from srattn.version import __version__


@dataclass(frozen=True)
class Converted:
    """What `convert_file` did; `notes` in words, `model` the registered name if the weights fit one.

    parts: of a whole model the configuration of what stands beside its backbone, "head" and of a detector "neck".
    """

    path: Path
    source_layout: str
    family: str
    model: str | None
    tensors: int
    notes: tuple[str, ...]
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def convert_file(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    target: str,
    *,
    layout: str | None = None,
    model: str | None = None,
    overwrite: bool = False,
) -> Converted:
    """Reads a checkpoint in any known layout and writes it in the layout `target`.

    Args:
        source: a file or a transformers folder.
        path: the file to write; without a known suffix a folder, for "transformers" alone.
        layout: of the source, else recognised.
        model: the registered model that the weights are of, else told by the shapes.

    Raises:
        SrattnError: the source cannot be read, is of another model, or does not fit the target. Nothing is written.
    """
    path = Path(path)
    to = get_layout(target)
    if model is not None:
        variant(model)  # an unknown name is told before anything is read
    folder = target == "transformers" and path.suffix not in (".safetensors", ".pth", ".pt", ".bin")
    if not folder:
        check_suffix(path)
    if not overwrite and os.path.lexists(path):
        raise SrattnError(f"{path} exists and is not overwritten; choose another path, or --overwrite")
    read = read_source(source)
    try:
        ours = _read(read, layout, model)
    except SrattnError as error:
        raise SrattnError(f"{read.origin}: {error}") from error
    detected, family = ours.detected, ours.detected.family
    get_layout(target, family)

    name, config, assumed = _describe(ours, read, model)
    eps, edge = _settings(ours, read)
    context = Context(ratios=ratios_of(config))
    head = None if ours.head is None else ours.head.to_ours()
    parts, guessed = ({}, ()) if head is None else _parts(head, read)
    state, left_out = from_ours(ours.state, target, family, context, head)
    notes = differences(to, eps, edge, config, left_out, family)
    if "neck" in parts and not detected.layout.parts:
        parts["neck"]["extra_relu"] = False  # of mmdetection's code
    notes += extra_relu_lost(to, family, parts)
    if folder:
        notes += [f"assumed: {text}" for text in assumed]
        write_folder(path, state, hf.config_for(family, config, eps, parts.get("head")), overwrite)
    else:
        # A width of nobody's is still some registered model with all of its numbers replaced.
        base = name or next(known for known in list_models() if _family(known) == family)
        described = {"model": {"name": base, **config}, "norm_eps": eps, "edge": edge, "version": __version__}
        described |= {"model": read.metadata["model"]} if _is_run(read) else parts
        notes += [f"assumed: {text}" for text in (*assumed, *guessed) if target == "srattn"]
        kept = {key: value for key, value in read.metadata.items() if key not in described}
        write_file(path, state, overwrite, {**kept, **described} if target == "srattn" else None)
    outside = [key.removeprefix(detected.outer) for key in (*ours.unknown, *ours.beside)]
    notes += [f"auxiliary_head {AUXILIARY}"] if any(key.startswith("auxiliary_head.") for key in outside) else []
    notes += [f"not converted: {key!r}" for key in [k for k in outside if not k.startswith("auxiliary_head.")][:5]]
    return Converted(path, detected.layout.name, family, name, len(state), tuple(notes), parts)


def _read(read: Source, layout: str | None, model: str | None) -> Ours:
    prefer, context = None, Context()
    if model is not None:
        prefer = _family(model)
        context = Context(ratios=ratios_of(model_options(model)))
    elif saved := saved_backbone(read.metadata):
        context = Context(ratios=ratios_of(saved))
        prefer = _family(saved["name"]) if saved.get("name") in list_models() else None
    grids = hf.context_from(read.config).grids
    kind = saved_kind(read.metadata)
    ours = to_ours(read.state, layout=layout, prefer=prefer, context=replace(context, grids=grids), kind=kind)
    if model is not None and ours.detected.family != prefer:
        raise SrattnError(f"these are weights of {ours.detected.family}, not of {model}")
    return ours


def _describe(ours: Ours, read: Source, model: str | None) -> tuple[str | None, dict[str, Any], tuple[str, ...]]:
    """The model's name and configuration, and what of it was assumed."""
    saved = saved_backbone(read.metadata)
    if isinstance(saved.get("name"), str):
        config = {key: value for key, value in saved.items() if key != "name"}
        return saved["name"], config, ()
    name, found = infer(ours.state, ours.detected.family)
    config, assumed = dict(found.config), found.assumed
    heads = hf.numbers_from(read.config)
    if heads is not None and len(heads) == len(config["depths"]):
        config["num_heads"], assumed = heads, ()
    if model is not None:
        options = model_options(model)
        told_by_numbers = ("mlp_ratios",) if ours.detected.family in TWINS_IN_NAME else ()
        for key in ("embed_dims", "depths", *told_by_numbers):
            if list(options[key]) != list(config[key]):
                fits = f"; they fit {name}" if name else ""
                raise SrattnError(
                    f"{read.origin}: the weights have {key} {config[key]}, {model} {list(options[key])}{fits}"
                )
        name, config["num_heads"], assumed = model, list(options["num_heads"]), ()
    return name, config, assumed


def _parts(head: Head, read: Source) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """The configuration of what stands beside the backbone, by its shapes and its file, and what of it was assumed."""
    parts = told_parts(head.kind, head.state, read.metadata, read.config)
    return parts, (ASSUMED[head.kind],) if head.kind in ASSUMED and not saved_parts(read.metadata) else ()


def _is_run(read: Source) -> bool:
    """Whether the file says of a whole model what a run's file does."""
    return isinstance(model := read.metadata.get("model"), dict) and "backbone" in model


def _settings(ours: Ours, read: Source) -> tuple[dict[str, float], str]:
    layout = ours.detected.layout
    if layout.name == "transformers":
        return hf.eps_from(read.config, ours.detected.family), layout.edge
    saved: Mapping[str, Any] = read.metadata if layout.name == "srattn" else {}
    eps = saved.get("norm_eps") or layout.eps_of(ours.detected.family)
    return dict(eps), str(saved.get("edge") or layout.edge)


def _family(model: str) -> str:
    return variant(model).family.__module__.rpartition(".")[2]
