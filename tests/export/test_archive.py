"""A .pt2 whose loading would run code is refused before torch sees it, however it is written."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from srattn.errors import SrattnError
from srattn.export.formats import get_format
from srattn.export.formats.archive import without_code
from srattn.export.formats.program_check import checked

INPUTS = "data/sample_inputs/model.pt"
PROGRAM = "models/model.json"
SIZE = (2, 3, 40, 48)


class Marks:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def rewrite(path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]]) -> None:
    """Replaces each entry by those that `change` makes of its name, without the folder, and its bytes."""
    with zipfile.ZipFile(path) as file:
        entries = [(entry.filename, file.read(entry)) for entry in file.infolist()]
    with zipfile.ZipFile(path, "w") as file:
        for whole, data in entries:
            root, _, name = whole.partition("/")
            for new, content in change(name, data):
                file.writestr(zipfile.ZipInfo(f"{root}/{new}"), content)


def edit(path: Path, entry: str, change: Callable[[dict[str, Any]], object]) -> None:
    def made(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if name != entry:
            return [(name, data)]
        found = json.loads(data)
        change(found)
        return [(name, json.dumps(found).encode())]

    rewrite(path, made)


def run(path: Path) -> torch.Tensor:
    (found,) = get_format("torch").open_file(path)(torch.ones(SIZE))
    return found


def test_what_torch_reads_is_made_anew(made: Path) -> None:
    with zipfile.ZipFile(without_code(made)) as file:
        names = file.namelist()
        assert file.read(f"model/{INPUTS}") == b""
        assert json.loads(file.read(f"model/{PROGRAM}"))["guards_code"] == []
    assert len(set(names)) == len(names)
    assert not [name for name in names if "extra" in name]


def test_a_pickle_of_inputs_is_left_out(made: Path, tmp_path: Path) -> None:
    expected, mark = run(made), tmp_path / "mark"
    rewrite(made, lambda name, data: [(name, pickle.dumps(Marks(mark)) if name == INPUTS else data)])
    assert torch.equal(run(made), expected)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "data/Sample_inputs/model.pt",
        "DATA/sample_inputs/model.PT",
        "data/sample_inputs/other.pt",
        "data\\sample_inputs\\model.pt",
        "data/weights/../sample_inputs/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/weights/model.pt",
        "data/aotInductor/model/code.so",
        "models/other.json",
        "code/__torch__.py",
        f"{PROGRAM} ",
        "Models/model.json",
    ],
)
@pytest.mark.parametrize("instead", [True, False])
def test_refuses_entries_of_other_names(name: str, instead: bool, made: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def change(old: str, data: bytes) -> list[tuple[str, bytes]]:
        if old != INPUTS:
            return [(old, data)]
        return [(name, pickle.dumps(Marks(mark)))] + ([] if instead else [(old, data)])

    rewrite(made, change)
    with pytest.raises(SrattnError, match="could run code; it is not loaded"):
        run(made)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("entry", [INPUTS, PROGRAM, "data/weights/weight_0"])
def test_refuses_entries_that_are_there_twice(entry: str, made: Path) -> None:
    rewrite(made, lambda name, data: [(name, data)] * (2 if name == entry else 1))
    with pytest.raises(SrattnError, match="a second time"):
        run(made)


@pytest.mark.parametrize("root", ["other", "", "Model", "model/model", "..", "C:\\x"])
def test_refuses_a_second_folder(root: str, made: Path) -> None:
    with zipfile.ZipFile(made, "a") as file:
        file.writestr(f"{root}/{INPUTS}", pickle.dumps(print))
    with pytest.raises(SrattnError, match="could run code"):
        run(made)


def test_a_name_that_differs_before_the_bytes_is_refused(made: Path) -> None:
    """The table at the end and the header of an entry each have its name."""
    data = made.read_bytes()
    made.write_bytes(data.replace(INPUTS.encode(), INPUTS.replace("sample", "SAMPLE").encode(), 1))
    with zipfile.ZipFile(made) as file:
        assert [name for name in file.namelist() if name.endswith(INPUTS)]
    assert without_code(made).getvalue().count(b"SAMPLE") == 0
    made.write_bytes(data.replace(PROGRAM.encode(), PROGRAM.upper().encode(), 1))
    with pytest.raises(SrattnError, match="is no whole"):
        run(made)


def test_refuses_what_unpacks_to_more_than_the_file(made: Path) -> None:
    with zipfile.ZipFile(made, "a", zipfile.ZIP_DEFLATED) as file:
        root = file.namelist()[0].partition("/")[0]
        file.writestr(f"{root}/data/constants/tensor_999", bytes(1 << 24))
    with pytest.raises(SrattnError, match="claims to hold"):
        run(made)


@pytest.mark.parametrize("code", ["__import__('os').mkdir({mark!r}) is None", "L['images'].size()[1] == 3"])
def test_guards_are_left_out(code: str, made: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    edit(made, PROGRAM, lambda found: found.update(guards_code=[code.replace("{mark!r}", repr(str(mark)))]))
    run(made)
    assert not mark.exists()


def _target(text: str) -> Callable[[dict[str, Any]], object]:
    return lambda found: found["graph_module"]["graph"]["nodes"][0].update(target=text)


def _argument(found: dict[str, Any]) -> None:
    found["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["images=__import__('os')"]


def _tree(found: dict[str, Any]) -> None:
    signature = found["graph_module"]["module_call_graph"][0]["signature"]
    signature["out_spec"] = signature["out_spec"].replace("null", '"collections.namedtuple"', 1)


def _pickled(found: dict[str, Any]) -> None:
    next(iter(found["config"].values()))["use_pickle"] = True


def _object(found: dict[str, Any]) -> None:
    next(iter(found["config"].values()))["path_name"] = "custom_obj_0"


@pytest.mark.parametrize(
    ("entry", "change", "words"),
    [
        (PROGRAM, _target("torch.os.system"), "no operator that"),
        (PROGRAM, _target("torch.ops.aten.from_file.default"), "no operator that"),
        (PROGRAM, _target("_operator.methodcaller"), "no operator that"),
        (PROGRAM, _target("torch.ops.load_library"), "no operator that"),
        (PROGRAM, _argument, "is no name"),
        (PROGRAM, _tree, "is no tuple or list"),
        (PROGRAM, lambda found: found.update(x=[{"expr_str": "__import__('os')"}]), "no formula of sizes"),
        (PROGRAM, lambda found: found.update({"x): import os": 1}), "is no name"),
        ("data/weights/model_weights_config.json", _pickled, "names a pickle"),
        ("data/weights/model_weights_config.json", _object, "no name of a tensor"),
    ],
)
def test_refuses_what_torch_would_make_code_of(entry: str, change: Any, words: str, made: Path) -> None:
    edit(made, entry, change)
    with pytest.raises(SrattnError, match=words):
        run(made)


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"\xff"])
def test_broken_json_is_one_line(text: bytes, made: Path) -> None:
    rewrite(made, lambda name, data: [(name, text if name == PROGRAM else data)])
    with pytest.raises(SrattnError, match="is no whole"):
        run(made)


def test_formulas_of_sizes_pass_and_long_ones_are_refused_at_once() -> None:
    for text in ("Mul(Integer(16), Symbol('s34', positive=True, integer=True))", "s0*2 + 1", "FloorDiv(s1, -2)"):
        assert checked(Path("x"), "y", {"expr_str": text}) == {"expr_str": text}
    with pytest.raises(SrattnError, match="no formula of sizes"):
        checked(Path("x"), "y", {"expr_str": "1" * 100_000 + "!"})
