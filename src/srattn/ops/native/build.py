"""Compiles the kernels for this machine at first use, and keeps the library for the next process.

The library lies in the user's cache folder (`SRATTN_CACHE`, else the platform's own), named by a hash of the sources,
the compiler, its flags and the processor: a change of any makes a new one. Where there is no compiler, or
`SRATTN_NATIVE=0` is set, there is no library, a reason that a person can read, and torch does the work.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from srattn.files import atomic_path

_log = logging.getLogger(__name__)

Operand = Literal["float32", "bfloat16"]
"""What the matrix products read; their sums, and all else, are float32."""

SOURCES = Path(__file__).parent / "kernels"
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC"]
DEFINES: dict[Operand, list[str]] = {"float32": [], "bfloat16": ["-DSRATTN_BF16"]}
LIMIT = 300
"""Seconds that a compiler may take."""


class Unavailable(Exception):
    """Why there is no library, in words."""


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    if given := os.environ.get("SRATTN_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "srattn"
    try:
        home = Path.home()
    except RuntimeError:  # a user whom the system does not know
        raise Unavailable("there is no home folder for the cache: set SRATTN_CACHE") from None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "srattn"
    return home / ".cache" / "srattn"


def library_path(operand: Operand = "float32", anew: bool = False) -> Path:
    """The library for this machine and these operands, compiled if need be, or `anew`.

    Raises:
        Unavailable: switched off, an operating system that is not supported, no compiler, or one that fails; a
            processor without instructions for the operands.
    """
    if os.environ.get("SRATTN_NATIVE", "1") == "0":
        raise Unavailable("switched off by SRATTN_NATIVE=0")
    if os.name != "posix":
        raise Unavailable(f"no kernels for {platform.system()} yet")
    if operand == "bfloat16" and "avx512_bf16" not in processor_flags():
        raise Unavailable("this processor has no AVX-512 instructions for bfloat16")
    compiler = _compiler()
    flags = [*FLAGS, *DEFINES[operand]]
    folder = _private(cache_folder())
    path = folder / f"kernels-{_fingerprint(compiler, flags)}.so"
    if anew or not path.exists():
        _log.info("compiling kernels for this processor, some 20 seconds, once: they are kept in %s", folder)
        _compile(compiler, flags, path)
    return path


@functools.lru_cache(maxsize=1)
def processor_flags() -> frozenset[str]:
    """What Linux says that the processor can do, such as "avx512_bf16"; empty elsewhere."""
    line = next((line for line in _cpuinfo() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.split())


def share_threads() -> None:
    """Makes torch's own OpenMP the one that the kernels find: two pools of threads would spin against each other."""
    import torch

    places = [Path(torch.__file__).parent / "lib", Path(torch.__file__).parent.parent / "torch.libs"]
    for found in (path for place in places for path in sorted(place.glob("libgomp*.so*"))):
        ctypes.CDLL(str(found), mode=ctypes.RTLD_GLOBAL)
        return


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise Unavailable("no C++ compiler was found (g++, or the one that CXX names)")


def _private(folder: Path) -> Path:
    """The folder, made for this user alone: what lies in it is executed."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise Unavailable(f"the cache folder {folder} cannot be used: {error.strerror}") from None
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise Unavailable(f"the cache folder {folder} can be written by others: chmod 700 it, or set SRATTN_CACHE")
    return folder


def _fingerprint(compiler: str, flags: list[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            digest.update(source.name.encode() + source.read_bytes())
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=LIMIT, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the compiler {compiler} failed: {error}") from None
    digest.update(version + repr([compiler, *flags]).encode() + _processor())
    return digest.hexdigest()[:20]


def _processor() -> bytes:
    lines = sorted({line for line in _cpuinfo() if line.startswith(("flags", "Features", "model name"))})
    return "\n".join(lines or [platform.machine(), platform.processor()]).encode()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    # OpenMP's functions stay undefined in the library: they are torch's, see `share_threads`.
    with tempfile.TemporaryDirectory(prefix="srattn-") as aside, atomic_path(path, overwrite=True) as library:
        unit = Path(aside) / "srattn.o"
        steps = [
            [compiler, *flags, "-c", str(SOURCES / "srattn.cpp"), "-o", str(unit)],
            [compiler, "-shared", str(unit), "-o", str(library)],
        ]
        for step in steps:
            try:
                done = subprocess.run(step, capture_output=True, text=True, timeout=LIMIT, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"the compiler {compiler} failed: {error}") from None
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise Unavailable(f"the compiler {compiler} failed: {last}")
