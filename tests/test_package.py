"""The package that Lambda runs, under the real runtime client, and how it reads its model."""

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import slow_files
from benchmarks.runtime import start_function
from export import ExportError
from export.package import UNUSED, package
from handler import filecheck
from handler.embedder import Embedder
from tests.conftest import ROOT


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
    with pytest.raises(RuntimeError, match=r"the function gave no answer: .*unknown field"):
        start_function(package_folder, {"txt": "vitamin d"}, environment(model_cache))


def test_the_package_is_compiled_and_holds_nothing_unused(package_folder: Path) -> None:
    assert not [path for pattern in UNUSED for path in package_folder.glob(pattern)]
    sources = [path for path in package_folder.rglob("*.py") if path.parent != package_folder]
    compiled = {path.parent.parent / path.name.split(".")[0] for path in package_folder.rglob("*.pyc")}
    assert {path.with_suffix("") for path in sources} <= compiled
    assert sum(path.stat().st_size for path in package_folder.rglob("*") if path.is_file()) < 125e6


def test_wheels_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ExportError, match=r"pip cannot install numpy==.*: ERROR: No matching distribution"):
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
