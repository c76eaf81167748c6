"""The rules of the house: what an import costs, what is public, and which room may import which."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import srattn
from srattn.cli.main import VERBS

PACKAGE = Path(srattn.__file__).parent

# A public name is public on purpose: whoever adds one edits this list.
PUBLIC_NAMES = [
    "FeatureInfo",
    "SpatialReductionAttention",
    "SrattnError",
    "TokenAttention",
    "__version__",
    "convert_sync_batchnorm",
    "create_model",
    "force_path",
    "from_pretrained",
    "list_models",
    "load_checkpoint",
    "plan",
    "register_model",
    "save_checkpoint",
    "save_pretrained",
    "without_kernels",
]

# From right to left: a room may import its own level's room and those before it in this list.
TOP = "serve export explain bench integrations"
ROOMS = ["ops", "layers", "models", "convert", "data heads recipes", "tasks", "engine", TOP, "cli"]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms.split()}
FOR_ALL = {"errors", "files", "telemetry", "version"}
TORCH_ALONE = {"ops", "layers", "models"}


def run_python(code: str) -> str:
    """Runs `code` in a fresh interpreter and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_costs_torch_and_nothing_more() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import srattn
print(*sorted(name for name in set(sys.modules) - before if name.partition(".")[0] != "srattn"))
"""
    assert run_python(code) == ""


def test_a_model_loads_no_compiler() -> None:
    code = "import srattn, sys; srattn.create_model('pvt_v2_b0').eval(); print('torch._dynamo' in sys.modules)"
    assert run_python(code) == "False"


def test_import_asks_nothing_of_cuda() -> None:
    # The questions themselves are made to fail, so that the test says something on a machine without a GPU too.
    code = """
import importlib, pkgutil, torch
def refuse(*args, **kwargs):
    raise AssertionError("an import asked for CUDA")
torch.cuda._lazy_init = torch.cuda.init = torch.cuda.is_available = torch.cuda.device_count = refuse
import srattn
for room in ("ops", "layers", "models"):
    package = importlib.import_module(f"srattn.{room}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
print(torch.cuda.is_initialized())
"""
    assert run_python(code) == "False"


def test_public_names() -> None:
    assert sorted(srattn.__all__) == sorted(PUBLIC_NAMES)
    assert set(PUBLIC_NAMES) <= set(dir(srattn))
    for name in PUBLIC_NAMES:
        assert getattr(srattn, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = srattn.no_such_name  # pyright: ignore[reportAttributeAccessIssue]


def test_version_stands_in_one_place(root: Path) -> None:
    from srattn.version import __version__

    assert srattn.__version__ == __version__
    assert f"\nversion: {__version__}\n" in (root / "CITATION.cff").read_text()
    holders = [path.name for path in PACKAGE.rglob("*.py") if f'"{__version__}"' in path.read_text()]
    assert holders == ["version.py"]


def test_type_marker_is_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_verb_has_its_module(verb: str) -> None:
    module = importlib.import_module(f"srattn.cli.{verb}")
    assert list(inspect.signature(module.add_arguments).parameters) == ["parser"]
    assert list(inspect.signature(module.run).parameters) == ["args"]


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_needs_no_extra(verb: str) -> None:
    extras = "PIL huggingface_hub kornia matplotlib numpy pyarrow sklearn torchmetrics"
    code = f"""
import sys
for name in {extras!r}.split():
    sys.modules[name] = None  # importing it fails
from srattn.cli.main import main
sys.exit(main([{verb!r}, "--help"]))
"""
    assert f"usage: srattn {verb}" in run_python(code)


def test_missing_numpy_is_no_reason_to_warn() -> None:
    code = """
import sys
sys.modules["numpy"] = None
from srattn.cli.main import main
main(["info"])
print(sys.modules["torch"].__version__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every absolute import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; name the module in full"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def rooms_and_files() -> list[tuple[str, Path]]:
    return [
        (path.relative_to(PACKAGE).parts[0], path) for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE
    ]


def test_rooms_import_to_the_right_only() -> None:
    broken = []
    for room, path in rooms_and_files():
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] != "srattn":
                continue
            target = parts[1] if len(parts) > 1 else "the package itself"
            allowed = target == room or target in FOR_ALL or LEVEL.get(target, len(ROOMS)) < LEVEL[room]
            if not allowed:
                broken.append(f"{path.relative_to(PACKAGE)}:{line}: {room} imports {target}")
    assert broken == []


def test_core_imports_torch_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "srattn"}
    broken = [
        f"{path.relative_to(PACKAGE)}:{line}: {module}"
        for room, path in rooms_and_files()
        if room in TORCH_ALONE
        for line, module in imports(path)
        if module.partition(".")[0] not in allowed
    ]
    assert broken == []
