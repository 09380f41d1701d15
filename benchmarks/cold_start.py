"""From the start of a fresh process to its first vector: as a library, and as the function that Lambda runs. Linux."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import instructions, slow_files
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.results import Figures, Result
from benchmarks.runtime import lambda_python, start_function
from deploy import DeployError
from deploy.package import LAMBDA_PYTHON, OWN_PYTHON, package

FLOOR = "floor"
"""What no function on onnxruntime can do without: `import numpy, onnxruntime`."""
TITLES = {**{name: contender.title for name, contender in CONTENDERS.items()}, FLOOR: "import numpy, onnxruntime"}
PAGE_CACHE, DISK, SLOW = "page cache", "disk", "slow file system"
FILES = {
    PAGE_CACHE: "all files in the page cache",
    DISK: "page cache dropped, all files on this machine's disk",
    SLOW: "model on a file system with 1 to 3 ms a read and 100 MB/s, as EFS; the rest in the page cache",
}

# Loads one contender, embeds one text, prints the vector's norm and the peak memory.
_LIBRARY = """
import sys
from pathlib import Path
name, model_folder, source = sys.argv[1:]
if name == "floor":
    import numpy, onnxruntime
    print(1.0, flush=True)
else:
    if name == "torch":
        from sentence_transformers import SentenceTransformer
        vector = SentenceTransformer(source, device="cpu", local_files_only=True).encode(["vitamin d"])[0]
    else:
        from handler.embedder import Embedder
        vector = Embedder.load(model_folder, name).embed(["vitamin d"]).vectors[0]
    print(float((vector * vector).sum()), flush=True)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), flush=True)
"""

# What handler.app does from its start, after the import of the runtime client, with a time after each step.
_PHASES = """
import sys, time
times = {"interpreter": time.perf_counter()}
import awslambdaric.bootstrap
times["runtime client"] = time.perf_counter()
import os
from handler import embed_api, events, log, openai_api
from artifact.manifest import open_artifact
from handler.filecheck import FileCheck
artifact = open_artifact(sys.argv[1])
check = FileCheck(artifact, "int8")
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from handler import embedder
times["imports"] = time.perf_counter()
tokenizer = embedder.load_tokenizer(artifact)
times["tokenizer"] = time.perf_counter()
check.finish()
session = embedder.load_session(artifact, "int8")
times["session"] = time.perf_counter()
embedder.Embedder(artifact.manifest, "int8", tokenizer, session, 1).embed(["vitamin d"])
times["first vector"] = time.perf_counter()
import json
print(json.dumps(times))
"""


def run(model_folder: Path, source: Path, rounds: int, advance: Callable[[], None]) -> Result:
    """Start everything once a round, in turns: first what meets a warm page cache, then what has it dropped.

    A first round of each, not counted, fills the page cache and whatever else remembers.
    """
    rows = [_row(name, "library", PAGE_CACHE) for name in (*OURS, FLOOR)]
    rows += [_row("int8", "function", files) for files in FILES]
    left_out = {DISK: _cannot_drop_page_cache(), SLOW: slow_files.unavailable()}
    rows = [row for row in rows if not left_out.get(row["files"])]
    with tempfile.TemporaryDirectory() as workdir, ExitStack() as stack:
        folder = Path(workdir) / "package"
        version, python = _function_python(Path(workdir) / "runtime")
        package(folder, version)
        models = model_folder.resolve()
        mount = Path(workdir) / "mount"
        mount.mkdir()
        if not left_out[SLOW]:
            stack.enter_context(slow_files.slow(models, mount))
        for warm in (True, False):
            turn = [row for row in rows if (row["files"] == PAGE_CACHE) == warm]
            for counted in [False] + [True] * rounds:
                for row in turn:
                    if row["mode"] == "library":
                        found = _start_library(row["contender"], model_folder, source)
                    else:
                        found = _start_function(python, folder, mount if row["files"] == SLOW else models, row["files"])
                    if counted:
                        for name, value in found.items():
                            _append(row, name, value)
                    advance()
    parameters = {
        "rounds": rounds,
        "function_python": version,
        "left_out": {name: reason for name, reason in left_out.items() if reason},
    }
    return Result.new("cold-start", model_folder, parameters, rows)


def steps(rounds: int) -> int:
    """How often `run` advances, at most."""
    return (rounds + 1) * (len(OURS) + 1 + len(FILES))


def figures(result: Result) -> list[Figures]:
    library = [row for row in result.rows if row["mode"] == "library"]
    function = [row for row in result.rows if row["mode"] == "function"]
    phases = list(function[0]["phases"]) if function else []
    suffix = instructions.suffix(result)
    return [
        Figures(
            f"Cold start of the library: fresh process to first vector, page cache warm, median{suffix}",
            ["", "ms", "peak memory, MB"],
            [[TITLES[row["contender"]], _ms(row["seconds"]), _median(row["peak_memory_mb"])] for row in library],
        ),
        Figures(
            "Cold start of the function: its package under AWS's runtime client and Python "
            f"{result.parameters['function_python']}, start to first answer, ms, median{suffix}",
            ["", "init", "first answer", "peak memory, MB"],
            [
                [FILES[row["files"]], _ms(row["ready"]), _ms(row["seconds"]), _median(row["peak_memory_mb"])]
                for row in function
            ],
        ),
        Figures(
            f"The same start by phase, without the Runtime API, ms, median{suffix}",
            ["", *phases],
            [[FILES[row["files"]], *(_ms(row["phases"][name]) for name in phases)] for row in function],
        ),
    ]


def _row(contender: str, mode: str, files: str) -> dict[str, Any]:
    return {"contender": contender, "mode": mode, "files": files}


def _append(row: dict[str, Any], name: str, value: float | Mapping[str, float]) -> None:
    if isinstance(value, Mapping):
        for inner, number in value.items():
            _append(row.setdefault(name, {}), inner, number)
    else:
        row.setdefault(name, []).append(value)


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:,.0f}"


def _median(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.0f}"


def _start_library(name: str, model_folder: Path, source: Path) -> Mapping[str, float]:
    command = [sys.executable, "-c", _LIBRARY, name, str(model_folder), str(source)]
    with _started(command, Path.cwd(), _environment()) as (process, began):
        assert process.stdout is not None  # noqa: S101  it is a pipe
        first = process.stdout.readline()
        seconds = time.perf_counter() - began
        peak = process.stdout.readline()
    if process.returncode != 0 or abs(float(first) - 1) > 1e-5:
        raise RuntimeError(f"{name} gave no unit vector: exit status {process.returncode}, norm {first!r}")
    return {"seconds": seconds, "peak_memory_mb": int(peak) / 1024}


def _start_function(python: str, folder: Path, model_folder: Path, files: str) -> Mapping[str, Any]:
    environment = {
        **_environment(),
        "AWS_LAMBDA_FUNCTION_NAME": "embed",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
        "MODEL_CACHE_DIR": str(model_folder.parent),
        "MODEL_NAME": model_folder.name,
    }
    _prepare(python, folder, files)
    started = start_function(folder, {"text": "vitamin d"}, environment, python)
    if abs(sum(number * number for number in started.answer["embedding"]) - 1) > 1e-5:
        raise RuntimeError(f"the function gave no unit vector: {started.answer}")
    _prepare(python, folder, files)
    command = [python, "-c", _PHASES, str(model_folder)]
    with _started(command, folder, environment) as (process, began):
        assert process.stdout is not None  # noqa: S101  it is a pipe
        ends = list(json.loads(process.stdout.read()).items())
    starts = [began, *(time for _, time in ends)]
    phases = {name: end - start for (name, end), start in zip(ends, starts, strict=False)}
    seconds = {"ready": started.ready, "seconds": started.answered}
    return {**seconds, "peak_memory_mb": started.peak_memory_mb, "phases": phases}


def _prepare(python: str, folder: Path, files: str) -> None:
    """Bring the page cache into the state that a start with `files` meets."""
    if files == PAGE_CACHE:
        return
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    if files == SLOW:  # all but the model is read back
        imports = [python, "-c", "import awslambdaric.bootstrap, handler.embed_api, handler.events, handler.embedder"]
        subprocess.run(imports, cwd=folder, env=_environment(), check=True)  # noqa: S603


def _function_python(folder: Path) -> tuple[str, str]:
    """Version and path of the Python for the function: Lambda's version, or else this one."""
    try:
        return LAMBDA_PYTHON, lambda_python(folder)
    except DeployError:
        return OWN_PYTHON, sys.executable


def _cannot_drop_page_cache() -> str | None:
    return None if os.access("/proc/sys/vm/drop_caches", os.W_OK) else "the page cache can be dropped by root alone"


def _environment() -> dict[str, str]:
    """This process's, but Python may keep bytecode, as people's Pythons do."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environment, "ORT_DISABLE_TELEMETRY": "1"}


@contextmanager
def _started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A child and when it was started, on the clock of time.perf_counter, which Linux shares among processes."""
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process, began
