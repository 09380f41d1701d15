"""Limits contenders to fewer instructions than the CPU has, so that one machine shows how others would do.

Lambda's x86_64 processors report AVX2 and no AVX-512 (docs/benchmarks.md, "Cost").
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.contenders import CONTENDERS
from benchmarks.machine import cpu
from benchmarks.results import Result

TITLES: Mapping[str, str] = {
    "avx2": "AVX2 alone",
    "avx512": "AVX-512 without VNNI",
    "vnni": "AVX-512 VNNI",
    "neon": "NEON",
}
"""Titles of the choices, which are those of KERNELS_INSTRUCTIONS."""

OF_THIS_CPU = tuple(
    name
    for name, flags in {
        "vnni": ("avx512_vnni",),
        "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
        "avx2": ("avx2", "fma"),
        "neon": ("asimddp",),
    }.items()
    if set(flags) <= cpu()[1]
)
"""Which of them this CPU has, the best first."""

ENVIRONMENT: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "CT2_FORCE_CPU_ISA": "AVX512",
    },
    "vnni": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "CT2_FORCE_CPU_ISA": "AVX512",
    },
    "neon": {},
}
"""Variables that torch, MKL, oneDNN, OpenVINO's among them, and CTranslate2 read when they are loaded."""

UNRESTRICTED = ("torch_int8", "st_onnx", "fastembed", "fp32", "dynamic_tensor", "dynamic_channel")
"""The contenders on onnxruntime's own operators and on FBGEMM, which use all that the CPU has and cannot be limited."""


def environment(instructions: str) -> Mapping[str, str]:
    """Environment variables that limit a process to these instructions, as far as possible."""
    return {"KERNELS_INSTRUCTIONS": instructions, **ENVIRONMENT[instructions]}


def title(name: str, result: Result) -> str:
    """A contender's title in a result's table; `name` is its key."""
    restricted = "instructions" in result.parameters
    return CONTENDERS[name].title + (" (all instructions)" if restricted and name in UNRESTRICTED else "")


def suffix(result: Result) -> str:
    """The end of the titles of a result's tables."""
    instructions = result.parameters.get("instructions")
    return f", {TITLES[instructions]}" if instructions else ""
