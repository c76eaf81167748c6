"""Quantising a file: which parts, what it costs, and whether that is too much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from srattn.errors import SrattnError
from srattn.export.child import tell
from srattn.export.formats import NAMES, get_format
from srattn.export.options import Options
from srattn.export.quantise.measure import decibels, run_all, same
from srattn.export.quantise.parts import matching, worst

AUTO = "auto"
LEAST = 10.0
"""Decibels: with more noise than a tenth of the signal's power, or of pixels, a file is not written."""
WANTED = 25.0
"""Decibels that `auto` aims at."""
HELD = 4
"""Every fourth batch is not calibrated on."""
_FEWEST = 2


def quantise(path: Path, program: str, images: Sequence[Tensor], options: Options) -> dict[str, Any]:
    """Replaces a file in float by one in whole numbers, and says what that costs.

    Args:
        path: the file, of boxes and scores where it is to suppress.
        program: what it was converted from.
        images: batches, as the file takes them.

    Returns:
        Numbers of images, `decibels` and `same` (see `measure`), the parts that were kept in float, and where the
        options ask for it the decibels of each part by itself.

    Raises:
        SrattnError: too few images, a pattern that names no part, or too much noise.
    """
    name, answer = options.format, "boxes" if options.answer == "detections" else options.answer
    file = get_format(name)
    if len(images) < _FEWEST:
        raise SrattnError(f"--calibrate needs at least {_FEWEST} batches of images, got {len(images)}")
    held, used = images[::HELD], [batch for n, batch in enumerate(images) if n % HELD]
    run = file.open_file(path)
    truth = run_all(run, held)
    del run
    tell(f"quantising for {NAMES[name]}")
    made = path.with_name(f"quantised{path.suffix}")
    found: dict[str, Any] = {"images": sum(map(len, used)), "held": sum(map(len, held)), "kept": [], "parts": {}}
    if options.precision == "int8-weights":
        _write_weights(name, path, made)
    else:
        quantiser = _quantiser(name, path, program, used)
        patterns = [pattern for pattern in options.keep_float if pattern != AUTO]
        kept = matching(quantiser.parts, patterns)
        if options.sensitivity or AUTO in options.keep_float:
            for part in quantiser.parts:
                tell(f"quantising {part} for {NAMES[name]}")
                quantiser.write(made, [part])
                found["parts"][part] = decibels(run_all(file.open_file(made), held), truth, answer)
        if AUTO in options.keep_float:
            alone = {part: value for part, value in found["parts"].items() if part not in kept}
            kept += worst(alone, WANTED)
        found["kept"] = [part for part in quantiser.parts if part in kept]
        quantiser.write(made, [part for part in quantiser.parts if part not in kept])
    tell(f"the quantised file in {NAMES[name]}")
    answers = run_all(file.open_file(made), held)
    found |= {"decibels": decibels(answers, truth, answer), "same": same(answers, truth, answer)}
    if found["decibels"] < LEAST:
        raise SrattnError(
            f"quantised, its noise is {found['decibels']:.1f} dB below the signal, and at least {LEAST:.0f} are "
            "wanted; nothing was written: say --keep_float auto, or calibrate on images like those to come"
        )
    for suffix in (".bin", path.suffix) if path.suffix == ".xml" else (path.suffix,):
        os.replace(made.with_suffix(suffix), path.with_suffix(suffix))
    return found


def _quantiser(name: str, path: Path, program: str, images: Sequence[Tensor]) -> Any:
    if name == "onnx":
        from srattn.export.quantise.onnx_int8 import OnnxQuantiser

        return OnnxQuantiser(path, images)
    from srattn.export.quantise.openvino_int8 import OpenVINOQuantiser

    return OpenVINOQuantiser(path, images, program)


def _write_weights(name: str, path: Path, target: Path) -> None:
    if name == "onnx":
        from srattn.export.quantise.onnx_int8 import write_weights
    else:
        from srattn.export.quantise.openvino_int8 import write_weights
    write_weights(path, target)
