"""The package that Lambda runs, under the real runtime client, and how it reads its model."""

import base64
import ctypes
import json
import os
import platform
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import emulation, slow_files
from benchmarks.memory import url_event
from benchmarks.runtime import lambda_python, start_function
from deploy import DeployError
from deploy.package import ARCHITECTURES, LAMBDA_PYTHON, PYTHONS, _install_wheels, interpreter, package, package_model
from deploy.slim import CHANGES, REPLACED, UNUSED, slim
from deploy.stub_library import machine, stub_library
from handler import filecheck
from handler.embedder import Embedder
from tests.support.packages import digests, no_python, size
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "function"
    package(folder)
    return folder


def environment(model_cache: Path) -> dict[str, str]:
    """Without the settings that the handler has made in this process, where other tests import it."""
    settings = ("OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    variables = {name: value for name, value in os.environ.items() if name not in settings}
    return {**variables, "MODEL_CACHE_DIR": str(model_cache), "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769"}


def test_the_package_answers_under_the_runtime_client(package_folder: Path, model_cache: Path, int8: Embedder) -> None:
    started = start_function(package_folder, {"text": "vitamin d"}, environment(model_cache))
    vector = np.array(started.answer["embedding"], np.float32)
    np.testing.assert_array_equal(vector, int8.embed(["vitamin d"]).vectors[0])
    assert 0 < started.ready < started.answered
    assert 30 < started.peak_memory_mb < 400


def test_a_function_that_fails_is_reported(package_folder: Path, model_cache: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the function refused the event: .*unknown field"):
        start_function(package_folder, {"txt": "vitamin d"}, environment(model_cache))
    with pytest.raises(RuntimeError, match=r"the function gave no answer: .*ArtifactNotFoundError"):
        start_function(package_folder, {"text": "vitamin d"}, environment(model_cache / "nothing"))


def test_the_package_is_compiled_and_holds_nothing_unused(package_folder: Path) -> None:
    assert not [path for pattern in UNUSED for path in package_folder.glob(pattern)]
    sources = [path for path in package_folder.rglob("*.py") if path.parent != package_folder]
    compiled = {path.parent.parent / path.name.split(".")[0] for path in package_folder.rglob("*.pyc")}
    assert {path.with_suffix("") for path in sources} <= compiled


def test_a_start_imports_nothing_that_it_does_not_need(package_folder: Path, model_cache: Path) -> None:
    code = (
        "import sys, handler.app as app; app.lambda_handler({'text': 'vitamin d'}, None);"
        "print([name for name in sys.modules if name.split('.')[0] in ('inspect', 'ast', 'ctypes', 'dataclasses')"
        " or name.startswith(('numpy.lib.', 'numpy.linalg', 'numpy.matrixlib', 'numpy._typing'))])"
    )
    variables = environment(model_cache)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=package_folder, env=variables, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "['numpy.lib._version']"


def test_the_packages_numpy_and_orjson_do_what_the_wheels_do(package_folder: Path) -> None:
    """What the handler and onnxruntime use of them; the results of this process, whose wheels are whole, are right."""
    code = """
import datetime, uuid
import numpy as np, orjson
rows = (np.arange(12, dtype=np.float32).reshape(3, 4) - 5) / np.float32(7)
print(orjson.dumps({
    "rows": rows, "sums": np.add.reduce(rows, axis=1), "roots": np.sqrt(np.maximum(rows, np.float32(0))),
    "least": int(np.argmin(rows)), "like": [np.zeros_like(rows), np.ones_like(rows)], "text": str(rows[0]),
    "sum": (rows * rows).sum(axis=1, keepdims=True), "types": [str(np.dtype("2i4,f8")), str(np.int64), str(np.bool)],
    "base64": rows.astype("<f4", copy=False).tobytes().hex(), "version": np.__version__,
    "day": datetime.date(2026, 1, 2), "id": uuid.UUID(int=7),
}, option=orjson.OPT_SERIALIZE_NUMPY).decode())
"""
    results = [
        subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
        for folder in (package_folder, package_folder.parent)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        (
            "numpy/_core/overrides.py",
            lambda text: text.replace("import inspect\n", ""),
            r"must have .import inspect",
        ),
        ("orjson/__init__.py", lambda text: text * 2, r"orjson/__init__.py must have 'from .orjson import"),
        ("numpy/lib/__init__.py", None, r"numpy/lib/__init__.py, .* does not exist any more"),
    ],
)
def test_wheels_that_have_changed_are_named(
    tmp_path: Path, module: str, change: Callable[[str], str] | None, message: str
) -> None:
    for name in {*REPLACED, *(each.module for each in CHANGES)}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(each.old for each in CHANGES if each.module == name))
    path = tmp_path / module
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    with pytest.raises(DeployError, match=message):
        slim(tmp_path)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Architecture and package of what Lambda runs: its Python, not this one."""
    if reason := no_python():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp(request.param) / "function"
    package(folder, LAMBDA_PYTHON, request.param)
    return request.param, folder


def test_package_and_model_are_under_100_mb(deployed: tuple[str, Path], model_folder: Path, tmp_path: Path) -> None:
    package_model(tmp_path, model_folder)
    assert size(deployed[1]) + size(tmp_path) < 100e6


def test_packages_are_of_their_architecture(deployed: tuple[str, Path]) -> None:
    architecture, folder = deployed
    libraries = [path for path in folder.rglob("*.so*") if path.is_file()]
    assert len(libraries) > 5
    assert {machine(path) for path in libraries} == {{"x86_64": 62, "arm64": 183}[architecture]}
    assert len(list(folder.rglob("*.cpython-313.pyc"))) > 80


def test_two_builds_have_the_same_bytes(deployed: tuple[str, Path], tmp_path: Path) -> None:
    architecture, folder = deployed
    package(tmp_path / "again", LAMBDA_PYTHON, architecture)
    assert digests(tmp_path / "again") == digests(folder)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lambda's Python with the runtime client, as it is before a function is put there."""
    if reason := no_python():
        pytest.skip(reason)
    return lambda_python(tmp_path_factory.mktemp("runtime"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the package for this machine is tested, and this is arm64")
@pytest.mark.parametrize("deployed", ["x86_64"], indirect=True)
def test_the_deployed_package_answers_on_lambdas_python(
    deployed: tuple[str, Path], runtime: str, model_folder: Path, tmp_path: Path, int8: Embedder
) -> None:
    package_model(tmp_path, model_folder)
    variables = environment(tmp_path / "ml-models") | {"PYTHONDONTWRITEBYTECODE": "1"}
    texts = ["vitamin d", "größe 🙂", "word " * 300]
    event = url_event(json.dumps({"texts": texts, "encoding_format": "base64"}))
    started = start_function(deployed[1], event, variables, runtime)
    assert started.answer["statusCode"] == 200
    body = json.loads(started.answer["body"])
    vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in body["embeddings"]]
    np.testing.assert_array_equal(vectors, int8.embed(texts).vectors)
    assert body["truncated"] == [2]


def test_the_arm64_package_runs_on_graviton2(model_folder: Path, tmp_path: Path, int8: Embedder) -> None:
    """Emulated, with the Python that there is for it, which is not Lambda's version."""
    if reason := emulation.missing("graviton2"):
        pytest.skip(reason)
    package(tmp_path / "function", emulation.PYTHON, "arm64")
    package_model(tmp_path, model_folder)
    code = (
        "import json, platform, sys, handler.app as app;"
        "answer = app.lambda_handler(json.loads(sys.argv[1]), None);"
        "print(json.dumps([platform.machine(), app.__file__, answer]))"
    )
    texts = ["vitamin d", "größe 🙂", "word " * 300]
    command, variables = emulation.command("graviton2", ["-c", code, json.dumps({"texts": texts})])
    function = tmp_path / "function"
    variables = {**variables, **environment(tmp_path / "ml-models"), "PYTHONPATH": str(function)}
    ran = subprocess.run(command, cwd=function, env=variables, capture_output=True, text=True, check=True, timeout=300)
    machine_name, file, answer = json.loads(ran.stdout.splitlines()[-1])
    assert (machine_name, file) == ("aarch64", str(function / "handler" / "app.py"))
    np.testing.assert_array_equal(np.float32(answer["embeddings"]), int8.embed(texts).vectors)


def test_a_function_of_blas_ends_with_a_message(package_folder: Path) -> None:
    code = "import numpy as np; print(np.ones(3, np.float32).sum(), flush=True); np.ones((2, 2)) @ np.ones((2, 2))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=package_folder, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (70, "3.0\n")
    assert "a function of a library was called that this package leaves out" in ran.stderr


@pytest.mark.parametrize("count", [0, 1, 2, 57])
def test_a_stub_library_has_its_functions(tmp_path: Path, count: int) -> None:
    names = [f"function_{index}" for index in range(count)]
    path = tmp_path / "libstub.so"
    path.write_bytes(stub_library("libstub.so", names, machine(Path(sys.executable))))
    library = ctypes.CDLL(str(path))
    assert all(hasattr(library, name) for name in names)
    assert not hasattr(library, "another")


def test_stub_libraries_are_for_two_processors() -> None:
    with pytest.raises(ValueError, match=r"processor 8 is neither x86-64"):
        stub_library("libstub.so", [], 8)


def test_a_model_that_is_damaged_is_not_packaged(copy_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = copy_model("v1")
    weights = model / "v1" / "model_int8.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DeployError, match=r"model_int8.onnx_data has SHA-256"):
        package_model(tmp_path / "layer", model)
    assert not (tmp_path / "layer").exists()


def test_a_python_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(DeployError, match=r"there is no python3.13 .*: install it"):
        interpreter("3.13")


def test_wheels_are_there_for_each_python_that_a_stack_may_have(tmp_path: Path) -> None:
    """For the latest, of which there may be no interpreter here."""
    _install_wheels(tmp_path, PYTHONS[-1], "arm64")
    slim(tmp_path)
    assert list(tmp_path.rglob(f"*.cpython-{PYTHONS[-1].replace('.', '')}-aarch64-linux-gnu.so"))


def test_wheels_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DeployError, match=r"pip cannot install numpy==.*: ERROR: No matching distribution"):
        package(tmp_path / "function")


@pytest.mark.parametrize(("memory", "threads"), [("1769", 1), ("3538", 3)])
def test_threads_follow_the_memory_size(model_cache: Path, memory: str, threads: int) -> None:
    """One thread for one vCPU; for two, the tokenizer's two beside it, which sleep when there is nothing to do."""
    code = (
        "import os, threading, handler.app as app; app.lambda_handler({'text': 'a'}, None);"
        "[each.join() for each in threading.enumerate()[1:]];"  # the one that checks files ends by itself
        "print(os.listdir('/proc/self/task'))"
    )
    if not Path("/proc/self/task").exists():
        pytest.skip("/proc is missing: threads cannot be counted")
    command = [sys.executable, "-c", code]
    variables = {**environment(model_cache), "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": memory}
    ran = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.count("'") == 2 * threads, ran.stdout


@pytest.fixture
def uncached_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(5 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            if os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT):  # this brings in the first part
                pytest.skip("this file system keeps its files in the page cache")
        except BlockingIOError:
            return path
        except OSError as error:
            pytest.skip(f"this file system does not tell what is cached: {error}")
    return path


def test_a_checked_file_is_in_the_page_cache(uncached_file: Path) -> None:
    expected = zlib.crc32(uncached_file.read_bytes())
    with uncached_file.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert filecheck.crc32(str(uncached_file)) == expected
        assert os.preadv(file.fileno(), [bytearray(5 << 20)], 0, os.RWF_NOWAIT) == 5 << 20
        assert filecheck.crc32(str(uncached_file)) == expected


def test_an_empty_file_has_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert filecheck.crc32(str(tmp_path / "empty")) == 0


@pytest.fixture
def slow_folder(tmp_path: Path) -> Iterator[Path]:
    if reason := slow_files.unavailable():
        pytest.skip(reason)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(os.urandom(300_000))
    (tmp_path / "mount").mkdir()
    try:
        with slow_files.slow(tmp_path / "files", tmp_path / "mount"):
            yield tmp_path
    except OSError as error:
        pytest.skip(str(error))


def test_the_slow_file_system_has_the_same_files(slow_folder: Path) -> None:
    assert [path.name for path in (slow_folder / "mount").iterdir()] == ["a"]
    assert (slow_folder / "mount" / "a").read_bytes() == (slow_folder / "files" / "a").read_bytes()
    with pytest.raises(OSError, match="Read-only"):
        (slow_folder / "mount" / "b").write_text("")
