"""How the library of operators is compiled, found and chosen for a CPU, and what is said where that cannot be."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import kernels
import kernels.__main__ as compiler
from artifact.manifest import ArtifactError, open_artifact
from benchmarks.emulation import command, missing
from benchmarks.instructions import OF_THIS_CPU
from deploy import DeployError
from deploy.package import package
from handler.embedder import Embedder
from kernels import LIBRARY, VERSION, library
from kernels.__main__ import CompileError, compile_operators
from quantize import QuantizationError
from quantize.session import open_session
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_a_model_of_other_operators_is_refused(version: int, copy_model: Callable[[str], Path]) -> None:
    artifact = open_artifact(copy_model("v1"))
    entry = artifact.manifest.precisions["int8"]
    assert entry.operators == VERSION
    other = artifact.manifest._replace(precisions={"int8": entry._replace(operators=version)})
    with pytest.raises(ArtifactError, match=rf"v1 needs the operators of version {version}, this code has version"):
        Embedder.from_artifact(artifact._replace(manifest=other))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: compile it with: make operators"),
        (b"no library", "cannot load .*operators.so: .*file too short"),
    ],
)
def test_a_library_that_cannot_be_loaded_is_named(
    content: bytes | None, message: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "operators.so"
    if content:
        path.write_bytes(content)
    monkeypatch.setattr(kernels, "LIBRARY", str(path))
    with pytest.raises(ArtifactError, match=message):
        Embedder.load(model_folder)
    with pytest.raises(QuantizationError, match=message):
        open_session(Path(open_artifact(model_folder).model("int8")))
    assert Embedder.load(model_folder, "fp32").embed(["float32 needs no operators"]).tokens == [7]


@pytest.mark.parametrize("wanted", ["sse2", "AVX2", " ", "neon" if os.uname().machine == "x86_64" else "avx2"])
def test_unknown_instructions_are_named(wanted: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", wanted)
    names = "vnni, avx512, avx2" if os.uname().machine == "x86_64" else "neon"
    with pytest.raises(ArtifactError, match=rf"KERNELS_INSTRUCTIONS must be one of {names}, or unset for the best"):
        Embedder.load(model_folder)


@pytest.mark.parametrize("instructions", OF_THIS_CPU)
def test_all_instructions_give_the_same_vectors(
    instructions: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What emulators do not know, AVX-512 without VNNI, and AVX2 as it runs without them."""
    texts = ["a", "Older instructions give the same.", "word " * 60]
    wanted = Embedder.load(model_folder).embed(texts).vectors
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", instructions)
    embedder = Embedder.load(model_folder)
    assert embedder.instructions == instructions
    np.testing.assert_array_equal(embedder.embed(texts).vectors, wanted)


def test_no_name_is_the_best_there_is(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = Embedder.load(model_folder).instructions
    assert best == OF_THIS_CPU[0]
    monkeypatch.setenv("KERNELS_INSTRUCTIONS", "")
    assert Embedder.load(model_folder).instructions == best


def test_float32_has_no_instructions_of_ours(float32: Embedder) -> None:
    assert float32.instructions is None


REGISTER = """
import os
os.environ.update({environment!r})
from handler import embedder
from kernels import register
register(embedder.onnxruntime.SessionOptions())
"""


@pytest.mark.parametrize(
    ("cpu", "machine", "emulated", "older", "message"),
    [
        ("haswell", "x86_64", "Haswell", "SandyBridge", "no AVX2: x86-64 needs AVX2 and FMA (Haswell, 2013, or newer)"),
        (
            "graviton2",
            "aarch64",
            "neoverse-n1",
            "cortex-a72",
            "no dot products: arm64 needs ARMv8.2's (Graviton2, 2019, or newer)",
        ),
    ],
)
def test_a_cpu_that_is_too_old_is_named(cpu: str, machine: str, emulated: str, older: str, message: str) -> None:
    if reason := missing(cpu):
        pytest.skip(f"{cpu}: {reason}")
    arguments, environment = command(cpu, ["-c", REGISTER.format(environment={})])
    arguments = [older if argument == emulated else argument for argument in arguments]
    assert older in arguments
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode
    assert f"OperatorsError: cannot load {library('linux', machine)}: " in ran.stderr
    assert f"this CPU has {message}" in ran.stderr


def test_instructions_that_the_cpu_does_not_have_are_refused() -> None:
    if reason := missing("haswell"):
        pytest.skip(f"haswell: {reason}")
    arguments, environment = command("haswell", ["-c", REGISTER.format(environment={"KERNELS_INSTRUCTIONS": "vnni"})])
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode
    assert "this CPU does not have the instructions that KERNELS_INSTRUCTIONS names: unset it" in ran.stderr


def test_two_compilations_have_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "library", lambda system, machine: str(tmp_path / f"{system}-{machine}.so"))
    made = compile_operators("linux", os.uname().machine)
    assert made.parent == tmp_path
    assert made.read_bytes() == Path(LIBRARY).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_sources_that_do_not_compile_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operators.c").write_text("int broken(void) { return }")
    monkeypatch.setattr(compiler, "FOLDER", tmp_path)
    monkeypatch.setattr(compiler, "SOURCES", {"x86_64": ("operators.c",)})
    monkeypatch.setattr(compiler, "library", lambda system, machine: str(tmp_path / "made.so"))
    with pytest.raises(CompileError, match=r"cannot compile the operators for linux x86_64: .*expected expression"):
        compile_operators("linux", "x86_64")
    assert [path.name for path in tmp_path.iterdir()] == ["operators.c"]


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(
        CompileError, match=r"no operators for linux riscv64, only for linux x86_64, linux aarch64, darwin"
    ):
        compile_operators("linux", "riscv64")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    base = sys._base_executable  # type: ignore[attr-defined]  # undocumented
    monkeypatch.setattr(sys, "executable", base)  # without what is installed beside it
    with pytest.raises(CompileError, match=r"the compiler is missing, install it with: pip install '.\[export\]'"):
        compile_operators("linux", "x86_64")


def test_a_package_without_operators_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deploy.package

    monkeypatch.setattr(deploy.package, "library", lambda system, machine: str(tmp_path / f"{system}-{machine}.so"))
    with pytest.raises(DeployError, match=r"linux-aarch64.so is missing: compile it with: make operators"):
        package(tmp_path / "function", architecture="arm64")
    assert not (tmp_path / "function").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the program that lets memory fail is of glibc")
def test_memory_that_cannot_be_had_is_an_error_each_time(model_folder: Path, tmp_path: Path) -> None:
    preloaded = tmp_path / "failing_memory.so"
    source = ROOT / "tests" / "programs" / "failing_memory.c"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1"]
    subprocess.run([*compiler, "-o", str(preloaded), str(source)], check=True)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.programs.failing_memory", str(model_folder)],
        env={**os.environ, "LD_PRELOAD": str(preloaded)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    *failures, last = ran.stdout.splitlines()
    assert last == f"same {len(failures)}"
    assert len(failures) >= 1 + 31 + 6 * 2  # the library, a kernel a node, and room for attention and Gelu a layer
    assert [line for line in failures if "out of memory" not in line] == []
