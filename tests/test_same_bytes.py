"""Whoever quantizes a model, wherever, gets the same bytes: other BLAS kernels, other SIMD of numpy's, other threads,
other CPUs. The models are small; export/pins.py has the digests of the real one's files, which each build meets."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from benchmarks.emulation import command, missing
from tests.support.encoders import random_encoder

pytestmark = pytest.mark.slow

SETTINGS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "as it is": ("native", {}),
    "one thread": ("native", {"OPENBLAS_NUM_THREADS": "1"}),
    "two threads": ("native", {"OPENBLAS_NUM_THREADS": "2"}),
    **{
        f"OpenBLAS for {kind}": ("native", {"OPENBLAS_CORETYPE": kind})
        for kind in ("Haswell", "SkylakeX", "Zen", "Nehalem")
    },
    "numpy without AVX-512": ("native", {"NPY_DISABLE_CPU_FEATURES": "X86_V4"}),
    "numpy without AVX2": ("native", {"NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3"}),
    "Haswell": ("haswell", {}),
    "Graviton2": ("graviton2", {}),
}
"""A CPU of benchmarks/emulation.py, and variables of the environment."""

Digests = tuple[str, ...]


def lacking(setting: str) -> str | None:
    """What this machine lacks for a setting; None if nothing."""
    cpu, variables = SETTINGS[setting]
    if platform.machine() != "x86_64" and {"OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES"} & set(variables):
        return f"this machine is {platform.machine()}, and the setting is of x86"
    if "SkylakeX" in variables.values() and "avx512f" not in Path("/proc/cpuinfo").read_text("utf-8"):
        return "this CPU has no AVX-512"
    return missing(cpu)


@pytest.fixture(scope="module", params=["bert", "mpnet"])
def digests(
    request: pytest.FixtureRequest, small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Digests]:
    """Of the INT8 file, and of a matrix product that depends on the library. MPNet has operators that BERT has not."""
    folder = tmp_path_factory.mktemp("same")
    sizes = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 384}
    if request.param == "mpnet":
        sizes |= {"hidden_size": 64, "num_attention_heads": 2}
    model = random_encoder(folder, small_tokenizer, kind=request.param, **sizes)
    program = str(Path(__file__).parent / "programs" / "quantize_for_portability.py")
    done: dict[str, Digests] = {}

    def of(setting: str) -> Digests:
        cpu, variables = SETTINGS[setting]
        if reason := lacking(setting):
            pytest.skip(f"{setting}: {reason}")
        if setting not in done:
            arguments, environment = command(
                cpu, [program, str(model), str(small_tokenizer), str(folder / "int8.onnx")]
            )
            ran = subprocess.run(
                arguments, env={**environment, **variables}, capture_output=True, text=True, check=False, timeout=600
            )
            assert ran.returncode == 0, ran.stderr
            done[setting] = tuple(ran.stdout.split())
        return done[setting]

    return of


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "as it is"])
def test_the_same_bytes(digests: Callable[[str], Digests], setting: str) -> None:
    assert digests(setting)[0] == digests("as it is")[0]


def test_these_settings_do_change_a_matrix_product(digests: Callable[[str], Digests]) -> None:
    """Or the test above could not fail."""
    assert len({digests(setting)[1] for setting in ("as it is", "OpenBLAS for Nehalem", "OpenBLAS for Haswell")}) > 1
