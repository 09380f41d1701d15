"""Every CPU gives the same vectors: this one, x86 with AVX2 and no more, and Graviton2, the last two emulated.

AVX2 is what AWS promises on x86. It is also the instruction set whose 16-bit sums saturate (quantize/linear.py).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from artifact.manifest import open_artifact
from benchmarks.emulation import CPUS, ROOT, command, missing
from export.texts import EXTREME, VERIFICATION_TEXTS
from handler.embedder import Embedder
from quantize.assemble import DOMAIN, product_constants
from quantize.rounding import LARGEST, LARGEST_CODE, LARGEST_SUM
from tests.support.vectors import cosines

pytestmark = pytest.mark.slow

# From the float32 model, on ordinary, hostile and extreme texts. To sums that are wrong this is lost.
QUALITY_MEAN_COSINE = 0.999
QUALITY_MIN_COSINE = 0.995

TEXTS = (*VERIFICATION_TEXTS, *(text for text in EXTREME if len(text) < 100))  # emulation is slow

ROWS = (1, 3, 7, 64)
SHAPES = [(inputs, outputs) for inputs in (16, 384, 1536) for outputs in (32, 384)]

Results = Mapping[str, np.ndarray]
Weights = Callable[[np.random.Generator, int, int], np.ndarray]


def bounded(signs: tuple[int, ...]) -> Weights:
    """Fours of one sign (rows i, i+1, i+4, i+5) whose magnitudes, split at random, add up to exactly the bound."""

    def weights(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
        left = np.full((inputs // 8, 2, 1, outputs), LARGEST_SUM)
        members = []
        for others in (3, 2, 1, 0):
            members.append(random.integers(np.maximum(left - others * LARGEST, 0), np.minimum(left, LARGEST) + 1))
            left = left - members[-1]
        fours = random.permuted(np.concatenate(members, axis=2), axis=2)
        fours *= random.choice(signs, (inputs // 8, 2, 1, outputs))
        return fours.reshape(inputs // 8, 2, 2, 2, outputs).swapaxes(1, 2).reshape(inputs, outputs)

    return weights


def all_127(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return np.full((inputs, outputs), 127)


def neighbours(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    """Signs - + + - - + + -: four large weights of one sign meet in rows 2i-1, 2i, 2i+3 and 2i+4, and never in a four.

    Those of the other sign are small: two sums that wrap around, one up and one down, would make good for each other.
    """
    large = random.integers(LARGEST_SUM // 4 + 1, LARGEST_SUM // 2 + 1, (inputs, outputs))
    small = random.integers(0, LARGEST_SUM // 4 + 1, (inputs, outputs))
    is_large = np.resize([True, False, False, True], inputs)[:, None]
    found: np.ndarray = np.where(is_large, -large, small)
    return found


def neighbours_moved_into_fours(random: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return np.roll(neighbours(random, inputs, outputs), 1, axis=0)


WITHIN_BOUND: dict[str, Weights] = {
    "positive": bounded((1,)),
    "negative": bounded((-1,)),
    "both-signs": bounded((1, -1)),
    "neighbours": neighbours,
}
BEYOND_BOUND: dict[str, Weights] = {"all-127": all_127, "moved": neighbours_moved_into_fours}


def product_model(weight: np.ndarray) -> onnx.ModelProto:
    """activations @ weight, uint8 by int8, where the rest is (1, 0): our operator with constant weights."""
    outputs = weight.shape[1]
    scale, bias = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
    constants = product_constants(weight.astype(np.int8), scale, bias, np.zeros((0, outputs), np.float32))
    inputs = [helper.make_tensor_value_info("activations", TensorProto.UINT8, ["rows", weight.shape[0]])]
    inputs.append(helper.make_tensor_value_info("rest", TensorProto.FLOAT, ["rows", 2]))
    graph = helper.make_graph(
        [helper.make_node("Linear", ["activations", "rest", *constants], ["product"], domain=DOMAIN)],
        "product",
        inputs,
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["rows", outputs])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def write_product(folder: Path, kind: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """Write one model and its activations as the program expects them; returns the exact products."""
    random = np.random.default_rng([inputs, outputs])
    weight = {**WITHIN_BOUND, **BEYOND_BOUND}[kind](random, inputs, outputs)
    assert np.abs(weight).max() <= 127
    activations = {f"largest-{rows}": np.full((rows, inputs), LARGEST_CODE, np.uint8) for rows in ROWS}
    activations |= {f"random-{rows}": random.integers(0, LARGEST_CODE + 1, (rows, inputs), np.uint8) for rows in ROWS}
    name = f"{kind}-{inputs}x{outputs}"
    onnx.save(product_model(weight), folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", allow_pickle=False, **activations)
    return {f"{name}/{key}": codes.astype(np.int64) @ weight for key, codes in activations.items()}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portability")
    (folder / "products").mkdir()
    (folder / "texts.json").write_text(json.dumps(TEXTS), "utf-8")
    return folder


@pytest.fixture(scope="module")
def exact(workdir: Path) -> dict[str, np.ndarray]:
    """The products of integers, by the names that the program gives them."""
    found: dict[str, np.ndarray] = {}
    for kind, (inputs, outputs) in itertools.product([*WITHIN_BOUND, *BEYOND_BOUND], SHAPES):
        found |= write_product(workdir / "products", kind, inputs, outputs)
    return found


@pytest.fixture(scope="module")
def results(workdir: Path, exact: dict[str, np.ndarray], model_folder: Path) -> Callable[[str], Results]:
    """What the program computed on a CPU. It runs once on each; the test is skipped where it cannot."""
    version = Path(open_artifact(model_folder).folder)  # one for all, even if another is put into use meanwhile

    @functools.cache
    def compute(cpu: str) -> Results:
        output = workdir / f"{cpu}.npz"
        program = str(Path(__file__).parent / "programs" / "compute_for_portability.py")
        arguments, environment = command(cpu, [program, str(version), str(workdir), str(output)])
        ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert ran.returncode == 0, f"on {cpu}: {ran.stderr}"
        assert "onnxruntime" not in ran.stderr, f"onnxruntime does not know the CPU {cpu}: {ran.stderr}"
        with np.load(output) as arrays:
            return dict(arrays)

    def of(cpu: str) -> Results:
        if reason := missing(cpu):
            pytest.skip(f"{cpu}: {reason}")
        return compute(cpu)

    return of


def wrong(found: Results, exact: Mapping[str, np.ndarray], kinds: Mapping[str, Weights]) -> list[str]:
    """Products of these kinds of weights that are not the exact ones, rounded to float32."""
    return [
        name
        for name, product in exact.items()
        if any(name.startswith(kind) for kind in kinds) and not np.array_equal(found[name], product.astype(np.float32))
    ]


@pytest.fixture(scope="module")
def float32_vectors(float32: Embedder) -> np.ndarray:
    return float32.embed(TEXTS).vectors


@pytest.mark.parametrize(("left", "right"), list(itertools.combinations(CPUS, 2)))
def test_two_cpus_give_the_same_vectors(results: Callable[[str], Results], left: str, right: str) -> None:
    """To the bit: a bit that differs moves a value to another code sooner or later, and then hundreds follow."""
    np.testing.assert_array_equal(results(left)["vectors"], results(right)["vectors"])


@pytest.mark.parametrize("cpu", CPUS)
def test_int8_is_near_float32_on_every_cpu(
    results: Callable[[str], Results], float32_vectors: np.ndarray, cpu: str
) -> None:
    found = cosines(results(cpu)["vectors"], float32_vectors)
    assert found.mean() >= QUALITY_MEAN_COSINE
    assert found.min() >= QUALITY_MIN_COSINE


@pytest.mark.parametrize("cpu", CPUS)
def test_products_within_the_bound_are_exact(
    results: Callable[[str], Results], exact: dict[str, np.ndarray], cpu: str
) -> None:
    assert not wrong(results(cpu), exact, WITHIN_BOUND)


def test_products_beyond_the_bound_are_wrong_with_avx2(
    results: Callable[[str], Results], exact: dict[str, np.ndarray]
) -> None:
    """Shows that this file would notice, that the bound is of fours i, i+1, i+4, i+5, that no better CPU ran."""
    found = wrong(results("haswell"), exact, BEYOND_BOUND)
    beyond = [name for name in exact if name.startswith(tuple(BEYOND_BOUND)) and "/largest-" in name]
    assert set(beyond) <= set(found)  # random activations need not reach the limit


@pytest.mark.parametrize("cpu", ["native", "graviton2"])
def test_products_beyond_the_bound_are_exact_on_other_cpus(
    results: Callable[[str], Results], exact: dict[str, np.ndarray], cpu: str
) -> None:
    found = results(cpu)
    if found["machine"] == "x86_64" and "avx512_vnni" not in Path("/proc/cpuinfo").read_text("utf-8"):
        pytest.skip("this x86 CPU has no AVX-512 VNNI: its sums wrap around as AVX2's do")
    assert not wrong(found, exact, BEYOND_BOUND)


@pytest.mark.parametrize(("cpu", "machine"), [("haswell", "x86_64"), ("graviton2", "aarch64")])
def test_emulated_programs_run_on_the_cpu_they_are_meant_for(
    results: Callable[[str], Results], cpu: str, machine: str
) -> None:
    assert results(cpu)["machine"] == machine


def test_operators_pass_their_tests_on_graviton2() -> None:
    """Those of what comes in wrong, and of attention, whose arithmetic each instruction set has for itself."""
    if reason := missing("graviton2"):
        pytest.skip(f"graviton2: {reason}")
    tests = [
        "tests/test_kernels.py",
        "-k",
        "no_number or no_rows or overflows or refused or other_bits or test_attention",
    ]
    arguments, environment = command("graviton2", ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", *tests])
    ran = subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert re.search(r"[1-9]\d+ passed", ran.stdout)
