"""Contenders can be limited to AVX2, and processors that are not here can be modelled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.manifest import open_artifact
from benchmarks import cycles, roofline
from benchmarks.cycles import PARTS, PROCESSORS, CyclesError
from benchmarks.instructions import OF_THIS_CPU, TITLES, environment
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

KEPT = """
import json, sys
from handler.embedder import Embedder
import torch
print(json.dumps([Embedder.load(sys.argv[1]).instructions, torch.backends.cpu.get_cpu_capability()]))
"""


@pytest.mark.skipif("avx2" not in OF_THIS_CPU, reason="this CPU has no AVX2")
def test_ours_and_torch_keep_to_avx2(model_folder: Path) -> None:
    variables = {**os.environ, **environment("avx2")}
    command = [sys.executable, "-c", KEPT, str(model_folder)]
    ran = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == ["avx2", "AVX2"]


@pytest.mark.parametrize("name", TITLES)
def test_each_choice_has_its_variables(name: str) -> None:
    assert environment(name)["KERNELS_INSTRUCTIONS"] == name


@pytest.mark.skipif("avx2" not in OF_THIS_CPU, reason="this CPU has no AVX2")
def test_the_limit_is_of_our_products_alone_where_onnxruntimes_cannot_be_kept_to_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", "avx2")
    rates = roofline.measure(threads=1)
    assert set(rates) == {"int8_gmacs"}
    assert min(rates["int8_gmacs"]) > 0


def test_what_cannot_be_kept_to_less_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "quality", "--instructions", "avx2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "--instructions is for cold-start, latency, throughput, cost, not for quality" in ran.stderr


def test_modelled_cycles_are_at_least_those_of_the_products(model_folder: Path) -> None:
    """Multiplications alone, at the most that each processor can do in a cycle."""
    if reason := cycles.unavailable():
        pytest.skip(reason)
    advances: list[None] = []
    result = cycles.run(model_folder, lambda: advances.append(None), lengths=(8,))
    assert len(advances) == cycles.steps(lengths=(8,)) == len(PROCESSORS)
    products = 8 * roofline.macs_per_token(Path(open_artifact(model_folder).model("int8")))
    # SDOT: 16 in each of two, or of four; VPMADDUBSW, twice, and VPMADDWD: 64 in three of two ports.
    at_most = {"neoverse-n1": 32, "neoverse-v2": 64, "skylake": 64 / 1.5, "znver3": 64 / 1.5}
    for cpu in PROCESSORS:
        found = {row["part"]: row for row in result.rows if row["cpu"] == cpu}
        assert set(found) == {*PARTS.values(), cycles.REST}
        assert 1 <= found["products"]["cycles"] / (products / at_most[cpu]) < 1.3
        assert all(row["instructions"] > 0 for row in found.values())
        assert sum(row["cycles"] for row in found.values()) < 2 * found["products"]["cycles"]


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CyclesError, match="llvm-mc-19 is not on PATH: apt-get install llvm-19"):
        cycles.run(tmp_path, lambda: None)
