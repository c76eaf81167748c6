"""``srattn export``: writes a model for another runtime, verified against eager before it is put in place."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from srattn.cli.embed import MODEL_HELP
from srattn.cli.sizes import read_size
from srattn.errors import SrattnError

if TYPE_CHECKING:
    from types import FrameType

    import jsonargparse
    from torch import Tensor

    from srattn.engine.weights import LoadedRun
    from srattn.export import Exported, Options

_MOST_IMAGES, _MOST_SCENES = 64, 8
_CALIBRATE, _CALIBRATE_SCENES = 320, 48
_BLOCK = 20
_NAMED = 5
_TASKS: dict[str, Any] = {
    "classification": "classify", "segmentation": "segment", "detection": "detect", "depth": "depth", "pose": "pose",
}  # fmt: skip


def add_arguments(parser: jsonargparse.ArgumentParser) -> None:
    parser.add_argument("model", type=str, help=MODEL_HELP)
    parser.add_argument("--out", type=str, required=True, help="the file to write: .pt2, .onnx, .xml (and .bin)")
    parser.add_argument(
        "--format",
        type=Literal["torch", "torch-compiled", "onnx", "openvino"] | None,
        help="of the file; by default what the suffix of --out says, and torch for .pt2",
    )
    parser.add_argument("--size", type=str | None, help="side in pixels, or HEIGHTxWIDTH; the model's own by default")
    parser.add_argument("--batch", type=str, default="dynamic", help="images at a time: a number, or dynamic")
    parser.add_argument(
        "--dynamic",
        type=str | None,
        help="sizes that may vary: height,width; or none. By default both for masks and depths, whose images "
        "keep their shape",
    )
    parser.add_argument(
        "--task",
        type=Literal["classify", "features", "segment", "detect", "depth", "pose"] | None,
        help="the model's own, which is the default, or features: the maps of all stages",
    )
    parser.add_argument(
        "--outputs",
        type=Literal["logits", "classes", "boxes", "rows"] | None,
        help="masks: logits on the model's grid, or the class of every pixel of the image (uint8); boxes: boxes and "
        "scores, or the rows of the head. The first by default",
    )
    parser.add_argument(
        "--nms",
        type=Literal["in", "out"] | None,
        help="boxes: in leaves only the best of those that overlap (onnx, openvino); out, the default, gives all. "
        "Detectors of two stages have in alone",
    )
    parser.add_argument(
        "--preprocess", action="store_true", help="take uint8 pictures of any size; resize and normalise in the graph"
    )
    parser.add_argument(
        "--precision",
        type=Literal["float32", "bfloat16", "float16", "int8", "int8-weights"],
        default="float32",
        help="int8: weights and activations in whole numbers, onnx and openvino; int8-weights: weights alone; float16: "
        "weights stored in half; bfloat16: computed in half, torch and openvino",
    )
    parser.add_argument("--calibrate", type=str | None, help="int8: images like those to come: a folder, a data set")
    parser.add_argument(
        "--keep_float",
        nargs="+",
        type=str,
        default=[],
        help="int8: parts that stay float, as in head '*.mlp' stages.0; or auto: those that lose most",
    )
    parser.add_argument("--sensitivity", action="store_true", help="int8: say what each part loses by itself")
    parser.add_argument("--opset", type=int, default=20, help="of ONNX, 18 or later")
    parser.add_argument("--images", type=str | None, help="real images to compare on beside random ones: file, folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(args: jsonargparse.Namespace) -> int:
    from pathlib import Path

    from srattn.engine.open_model import open_model
    from srattn.export.export import check_target, export_model
    from srattn.export.formats import get_format
    from srattn.export.options import WHOLE, Options

    name = args.format or _format_of(args.out)
    height, width = (224, 224) if args.size is None else read_size(args.size)
    batch, dynamic = _batch(args.batch), _words(args.dynamic)
    given = Options(
        name,
        (height, width),
        batch,
        dynamic,
        args.task or "classify",
        args.preprocess,
        args.opset,
        precision=args.precision,
        keep_float=tuple(args.keep_float),
        sensitivity=args.sensitivity,
    )
    check_target(Path(args.out), given, args.overwrite)
    given.check(1)
    get_format(name)
    if args.calibrate is None and args.precision in WHOLE:
        raise SrattnError(f"--precision {args.precision} needs images like those to come: --calibrate FOLDER")
    if args.calibrate is not None and args.precision not in WHOLE:
        raise SrattnError(f"--calibrate goes with --precision int8 or int8-weights, got --precision {args.precision}")
    if args.model.endswith((".onnx", ".xml", ".pt2")):
        raise SrattnError(f"{args.model} is an export itself; give the model that it was made of")
    loaded = open_model(args.model)
    given = _settled(args, given, loaded)
    scenes = given.task not in ("classify", "features")
    most, calibrating = (_MOST_SCENES, _CALIBRATE_SCENES) if scenes else (_MOST_IMAGES, _CALIBRATE)
    real = [] if args.images is None else _real_images(loaded, args.images, given, most, "--images")
    calibrate = []
    if args.calibrate is not None:
        calibrate = _real_images(loaded, args.calibrate, given, calibrating, "--calibrate", together=False)
    with _terminable():
        exported = export_model(
            loaded.model,
            args.out,
            given,
            labels=loaded.classes,
            palette=loaded.palette,
            preprocess=loaded.preprocess,
            real=real,
            calibrate=calibrate,
            card=_card(loaded),
            overwrite=args.overwrite,
        )
    _say(exported)
    return 0


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP unwind as Ctrl-C does, so that the child and the folder go; exit code 143."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    caught = [number for number, old in before.items() if old is signal.SIG_DFL]  # under nohup one stays ignored
    for number in caught:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _settled(args: jsonargparse.Namespace, given: Options, loaded: LoadedRun) -> Options:
    """The options, what was left open settled by the model."""
    import dataclasses

    task = args.task or _TASKS.get(loaded.task)
    if task is None:
        raise SrattnError(
            f"{loaded.path} is a model for {loaded.task}; export knows {', '.join(_TASKS)}; "
            "--task features exports the maps of its backbone"
        )
    if task == "classify" and not loaded.classes:
        raise SrattnError(f"{loaded.path} has no classifier; --task features exports its maps")
    outputs = args.outputs or ""
    if args.nms is not None:
        if task != "detect" or outputs not in ("", "boxes"):
            raise SrattnError(f"--nms is for boxes, got --task {task} and --outputs {outputs or 'as usual'}")
        outputs = "detections" if args.nms == "in" else "boxes"
    if args.size is None:
        given = dataclasses.replace(given, size=loaded.preprocess.size)
    if (
        args.dynamic is None
        and task in ("segment", "depth")
        and given.format != "torch-compiled"
        and not given.preprocess
    ):
        given = dataclasses.replace(given, dynamic=("height", "width"))
    return dataclasses.replace(given, task=task, outputs=outputs)


def _say(exported: Exported) -> None:
    facts = exported.facts
    verified, absorbed = facts.verified, facts.absorbed
    shapes = ", ".join("x".join(map(str, shape)) for shape in verified["inputs"][:3])
    more = len(verified["inputs"]) - 3
    print(
        f"verified against eager on {shapes}{f' and {more} more inputs' if more > 0 else ''}: "
        f"worst error {verified['error']:.1e}, tolerance {verified['tolerance']:.1e}, relative to the largest value"
    )
    if facts.quantised:
        _say_quantised(facts.quantised)
    if absorbed:
        print(f"absorbed attention in {sum(absorbed)} of {len(absorbed)} blocks")
    print(f"{exported.path}: {exported.bytes / 1e6:.1f} MB, outputs {', '.join(facts.outputs)}")


def _say_quantised(found: dict[str, Any]) -> None:
    print(
        f"calibrated on {found['images']} images; on {found['held']} others noise is {found['decibels']:.1f} dB below "
        f"the signal, and {100 * found['same']:.1f}% of the choices are the same"
    )
    if found["parts"]:
        order = sorted(found["parts"].items(), key=lambda entry: entry[1])[:_NAMED]
        print("most is lost by " + ", ".join(f"{part} ({value:.1f} dB)" for part, value in order))
    if found["kept"]:
        print(f"kept in float: {', '.join(found['kept'])}")


def _card(loaded: LoadedRun) -> dict[str, Any]:
    """What a run says of its training, without places on this machine."""
    from srattn.engine.card import recipe_of, result_of

    recipe, result = recipe_of(loaded), result_of(loaded)
    card: dict[str, Any] = {"source": loaded.path.name}
    card |= {key: recipe[key] for key in ("data", "epochs", "seed", "recipe") if key in recipe}
    card |= {} if loaded.of_255 is None else {"of_255": loaded.of_255}
    if result:
        plain = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
        card["result"] = {key: value for key, value in plain.items() if key != "data"}  # a path
    return card


def _real_images(
    loaded: LoadedRun, name: str, options: Options, most: int, flag: str, together: bool = True
) -> list[Tensor]:
    """Readable images of a file or folder, as the graph takes them, `options.batch` at a time; masks and depths beside
    images are none.

    Args:
        most: images; of more, blocks from all over, since folders may be sorted by class.
        together: images of one size are one batch, where the batch is free; else each is by itself.
    """
    import dataclasses
    from pathlib import Path

    import torch

    from srattn.data.dense.pairs import image_folders
    from srattn.engine.rows import open_rows
    from srattn.engine.rows.answer import pixels_of

    raw = options.preprocess
    if raw:
        from srattn.export.opened import InGraph

        kept: Any = InGraph(**loaded.preprocess.to_dict())
    else:
        kept = options.fitted(loaded.preprocess)
    run = dataclasses.replace(loaded, preprocess=kept)
    rows = open_rows([str(folder) for folder in image_folders(Path(name))] or [name], None)
    blocks = max(1, most // _BLOCK) if len(rows) > most else 1
    starts = [block * len(rows) // blocks for block in range(blocks)]
    count = min(len(rows), most) // blocks
    found = [pixels_of(run, source) for start in starts for source in rows.read(start, start + count)]
    pixels = [each for each in found if isinstance(each, torch.Tensor)]
    if not pixels:
        raise SrattnError(f"{flag} {name} has no readable image")
    if raw:
        return [each.permute(1, 2, 0).expand(options.batch or 1, -1, -1, -1).contiguous() for each in pixels]
    images = [kept.normalise(each.unsqueeze(0).float() / 255) for each in pixels]
    if len({each.shape for each in images}) > 1 or (options.batch is None and not together):
        return [each.expand(options.batch or 1, -1, -1, -1).contiguous() for each in images]
    joined = torch.cat(images)
    if options.batch is None:
        return [joined]
    return [each for each in joined.split(options.batch) if len(each) == options.batch] or [
        joined[:1].expand(options.batch, -1, -1, -1)
    ]


def _format_of(out: str) -> Any:
    for suffix, name in ((".pt2", "torch"), (".onnx", "onnx"), (".xml", "openvino")):
        if out.endswith(suffix):
            return name
    raise SrattnError(f"--out ends in .pt2, .onnx or .xml, got {out}")


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word for word in (text or "").split(",") if word not in ("", "none"))


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SrattnError(f"--batch is dynamic or at least 1, got {text!r}")
    return int(text)
