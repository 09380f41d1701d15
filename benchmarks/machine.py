"""What a result was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

import psutil

PACKAGES = (
    "ctranslate2",
    "fastembed",
    "nncf",
    "numpy",
    "onnxruntime",
    "openvino",
    "openvino-genai",
    "optimum",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)
"""Whose versions are recorded, where they are installed."""
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""The instruction sets that decide the speed of float32 and INT8 products, as /proc/cpuinfo names them."""


def describe_machine() -> Mapping[str, object]:
    """CPU, memory, system and the versions of what is compared."""
    model, flags = cpu()
    return {
        "cpu": model,
        "cpu_features": [name for name in CPU_FEATURES if name in flags],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {found.name: found.version for name in PACKAGES for found in distributions(name=name)},
    }


def cpu() -> tuple[str, set[str]]:
    """Its model, and its features as the kernel names them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown", set()
    rows = [line.partition(":") for line in text.splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in reversed(rows)}  # the first CPU's
    flags = fields.get("flags", fields.get("Features", "")).split()
    return fields.get("model name", platform.processor() or "unknown"), set(flags)
