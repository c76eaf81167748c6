"""The kernels as other processors compile them, run on this one: a plugin of pytest, `-p tests.ops.native.processors`.

`SRATTN_TEST_PROCESSOR` names the processor: "avx2" and "any" leave out instructions that this one may have; "amx" has
those for bfloat16 and the matrix units by `bfloat16.h`, in AVX-512's own. They compute what the
real ones do, slowly.
"""

import os
from pathlib import Path

from srattn.ops.native import build

EMULATED = ["-include", str(Path(__file__).with_name("bfloat16.h"))]
FLAGS = {"avx2": "-march=haswell", "any": "-march=x86-64"}


def _become(processor: str) -> None:
    if processor in FLAGS:
        build.FLAGS = [FLAGS[processor] if flag == "-march=native" else flag for flag in build.FLAGS]
        build.processor_flags = frozenset  # type: ignore[assignment]
    else:
        build.DEFINES["bfloat16"] = [*build.DEFINES["bfloat16"], *EMULATED]
        flags = build.processor_flags() | {"avx512_bf16"}
        build.processor_flags = lambda: flags  # type: ignore[assignment]


_become(os.environ["SRATTN_TEST_PROCESSOR"])
