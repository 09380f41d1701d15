"""Memory of the function's process: its peak, whether it grows, and how little is enough. Linux.

MB are 2**20 bytes, as Lambda's are.
"""

from __future__ import annotations

import bisect
import importlib.util
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from artifact.manifest import open_artifact
from benchmarks.cgroups import Limits, limited, unavailable
from benchmarks.corpus import of_length
from benchmarks.results import Figures, Result
from handler.limits import MAX_REQUEST_BYTES, max_texts

BODY_BYTES = MAX_REQUEST_BYTES - 4096
"""Bytes that the largest bodies leave free: Lambda counts what wraps them too."""
MEMORY_SIZE = 3008
"""MB that the function believes to have where nothing limits it: two threads."""

SAMPLE_EVERY = 100
"""Requests between two samples of the resident memory."""

SETTLED = 1000
"""Requests after which memory should not grow any more."""

SIZES = range(56, 297, 8)
"""MB among which the smallest sufficient limit is searched. Lambda begins at 128, but its own system takes a part of
that. A count of 2**TRIALS - 1, so that every search takes TRIALS trials."""

TRIALS = 5

CALL_SECONDS = 300
"""A request that takes longer has failed: a process may also be so short of memory that it reads its files forever."""

# As the runtime client does: JSON is decoded, handled and encoded. A line with the response, then one with the figures.
_PROGRAM = """
import json, sys, time
class Log:
    line = "{}"
    def write(self, text):
        self.line = text
    def flush(self):
        pass
answers, sys.stdout = sys.stdout, Log()  # the function logs there
from handler.app import lambda_handler
for line in sys.stdin.buffer:
    started = time.perf_counter()
    response = json.dumps(lambda_handler(json.loads(line), None))
    seconds = time.perf_counter() - started
    print(response, file=answers, flush=True)
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    memory = {name: int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}
    run = json.loads(sys.stdout.line).get("phases_ms", {}).get("run", 0) / 1000
    figures = {"seconds": seconds, "run_seconds": run, "rss_mb": memory["VmRSS"], "peak_mb": memory["VmHWM"]}
    print(json.dumps(figures), file=answers, flush=True)
    del response, line
"""


class FunctionEndedError(Exception):
    """The function's process ended, or did not answer in time."""


class Answer(NamedTuple):
    """What a request brought."""

    response: Any
    seconds: float
    """From the request's JSON to the response's, inside the process."""
    run_seconds: float
    """Of those in the model, by the function's log."""
    rss_mb: float
    """Resident memory after the request."""
    peak_mb: float
    """The most there has been of it since the process started (VmHWM)."""

    @property
    def status(self) -> int:
        """Of HTTP, or what it would be of a direct invocation."""
        return int(self.response.get("statusCode") or self.response.get("error", {}).get("status", 200))

    def check_vectors(self) -> None:
        """Raise RuntimeError unless the first vector of the response has norm 1."""
        body = json.loads(self.response["body"]) if "statusCode" in self.response else self.response
        vector = body["embedding"] if "embedding" in body else body["embeddings"][0]
        norm = sum(number * number for number in vector) ** 0.5
        if abs(norm - 1) > 1e-5:
            raise RuntimeError(f"the function gave a vector of norm {norm}")


class Function:
    """`handler.app.lambda_handler` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def call(self, event: Mapping[str, Any]) -> Answer:
        """Handle one event. Raises FunctionEndedError."""
        assert self._process.stdin is not None  # noqa: S101  both are pipes
        assert self._process.stdout is not None  # noqa: S101
        timer = threading.Timer(CALL_SECONDS, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(event) + "\n")
            self._process.stdin.flush()
            response, figures = self._process.stdout.readline(), self._process.stdout.readline()
        except BrokenPipeError:
            figures = ""
        finally:
            timer.cancel()
        if not figures:
            raise FunctionEndedError(f"the function's process ended with status {self._process.wait()}")
        return Answer(json.loads(response), **json.loads(figures))


@contextmanager
def function(model_folder: Path, memory_mb: int, limits: Limits | None) -> Iterator[Function]:
    """A function that believes to have `memory_mb`, in the groups of `limits`; it ends with the block."""
    environment = {
        **os.environ,
        "MODEL_CACHE_DIR": str(model_folder.absolute().parent),
        "MODEL_NAME": model_folder.absolute().name,
        "MODEL_PRECISION": "int8",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
    }
    environment.pop("MODEL_THREADS", None)
    command = [sys.executable, "-c", _PROGRAM]
    if limits is not None:
        command = limits.command(command)
    process = subprocess.Popen(  # noqa: S603
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        yield Function(process)
    finally:
        process.kill()
        process.communicate()


def url_event(body: str, method: str = "POST", path: str = "/embed", base64: bool = False) -> dict[str, Any]:
    """What the handler reads of a Function URL's event (payload 2.0)."""
    http = {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "benchmark"}
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": http},
        "body": body,
        "isBase64Encoded": base64,
    }


def steps(requests: int) -> int:
    """How often `run` calls `advance`."""
    return len(_extremes(384)) + -(-requests // SAMPLE_EVERY) + TRIALS


def run(model_folder: Path, requests: int, advance: Callable[[], None]) -> Result:
    """Peak memory of extreme requests, resident memory over many mixed ones, and the smallest sufficient limit.

    `advance` is called steps(requests) times. Where limits cannot be set, the last part is left out: the reason is
    printed, and stored in its row.
    """
    dimensions = open_artifact(model_folder).manifest.dimensions
    rows: list[dict[str, Any]] = []
    for case, event in _extremes(dimensions).items():
        rows.append(_peak(model_folder, case, event))
        advance()
    rows.append(_growth(model_folder, requests, advance))
    if reason := unavailable():
        print(f"smallest memory size not measured: {reason}", file=sys.stderr)
        rows.append({"measure": "smallest", "unavailable": reason})
        for _ in range(TRIALS):
            advance()
    else:
        rows += _trials(model_folder, dimensions, advance)
    parameters = {"requests": requests, "memory_size_mb": MEMORY_SIZE, "max_texts": max_texts(dimensions)}
    return Result.new("memory", model_folder, parameters, rows)


def figures(result: Result) -> Figures:
    """One table: peaks, growth, the smallest sufficient limit."""
    peaks = [row for row in result.rows if row["measure"] == "peak"]
    (growth,) = (row for row in result.rows if row["measure"] == "growth")
    trials = [row for row in result.rows if row["measure"] == "smallest"]
    samples = dict(zip(growth["requests"], growth["rss_mb"], strict=True))
    settled = min(SETTLED, max(samples))
    return Figures(
        "Memory of the function's process, MB of 2**20 bytes; Lambda's own runtime and system come on top",
        ["", "MB"],
        [
            *([f"peak: {row['case']}", f"{row['peak_memory_mb']:.0f}"] for row in peaks),
            [f"resident after {settled:,} mixed requests", f"{samples[settled]:.1f}"],
            [f"resident after {max(samples):,} mixed requests", f"{samples[max(samples)]:.1f}"],
            ["largest of the samples between them", f"{max(mb for at, mb in samples.items() if at >= settled):.1f}"],
            [f"smallest limit that answers {', '.join(_DEMANDS)}", _smallest(trials)],
        ],
    )


def _smallest(trials: Sequence[Mapping[str, Any]]) -> str:
    if any("unavailable" in row for row in trials):
        return "not measured"
    enough = [row["memory_mb"] for row in trials if row["works"]]
    return str(min(enough)) if enough else f"over {max(SIZES)}"


def _extremes(dimensions: int) -> dict[str, dict[str, Any]]:
    """Direct invocations that take the most memory, by what they are."""
    most = max_texts(dimensions)
    characters = BODY_BYTES // most - len('"", ')
    # Words of 5 characters or so; one token each, or one for each character.
    prose, punctuation = of_length(characters)[:characters], "!" * characters
    return {
        "one short text": {"text": "vitamin d"},
        f"{most:,} texts of 256 tokens": {"texts": [of_length(254)] * most},
        "6 MB of prose in 6 texts": {"texts": [of_length(BODY_BYTES)[: BODY_BYTES // 6 - 10]] * 6},
        f"6 MB of prose in {most:,} texts": {"texts": [prose] * most},
        f"6 MB of punctuation in {most:,} texts": {"texts": [punctuation] * most},
    }


def _peak(model_folder: Path, case: str, event: Mapping[str, Any]) -> dict[str, Any]:
    with function(model_folder, MEMORY_SIZE, None) as process:
        answer = process.call(event)
    answer.check_vectors()
    texts = event["texts"] if "texts" in event else [event["text"]]
    return {
        "measure": "peak",
        "case": case,
        "texts": len(texts),
        "characters": sum(map(len, texts)),
        "seconds": [answer.seconds],
        "peak_memory_mb": answer.peak_mb,
    }


def _growth(model_folder: Path, requests: int, advance: Callable[[], None]) -> dict[str, Any]:
    row: dict[str, Any] = {"measure": "growth", "requests": [], "rss_mb": [], "statuses": {}}
    started = time.perf_counter()
    with function(model_folder, MEMORY_SIZE, None) as process:
        for number, (event, status) in enumerate(mixed_requests(requests), start=1):
            answer = process.call(event)
            if answer.status != status:
                raise RuntimeError(f"request {number} was answered with {answer.status}, not {status}")
            row["statuses"][str(status)] = row["statuses"].get(str(status), 0) + 1
            if number % SAMPLE_EVERY == 0 or number == requests:
                row["requests"].append(number)
                row["rss_mb"].append(answer.rss_mb)
                advance()
    return row | {"seconds": [time.perf_counter() - started]}


def mixed_requests(count: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Function URL events with the status each must get; always the same ones.

    1 to 32 texts of 3 to 256 tokens, most of them few and short; one in 500 is the largest of these; one in 20 is a
    client's mistake.
    """
    source = random.Random(0)  # noqa: S311  not for secrets
    texts = [of_length(words) for words in range(1, 255)]
    for number in range(count):
        if number % 20 == 10:
            yield source.choice(_MISTAKES)
        elif number % 500 == 499:
            yield url_event(json.dumps({"texts": [texts[-1]] * 32})), 200
        else:
            size = min(32, 1 + int(source.expovariate(1 / 3)))
            lengths = [min(254, 1 + int(source.expovariate(1 / 20))) for _ in range(size)]
            yield url_event(json.dumps({"texts": [texts[words - 1] for words in lengths]})), 200


_MISTAKES: Sequence[tuple[dict[str, Any], int]] = (
    (url_event("{"), 400),
    (url_event('{"texts": []}'), 400),
    (url_event('{"texts": [1]}'), 400),
    (url_event("not base64!", base64=True), 400),
    (url_event("/////w==", base64=True), 400),  # bytes FF, which are not UTF-8
    (url_event(json.dumps({"text": "x", "txt": "y" * 10_000})), 400),
    (url_event("", method="GET"), 405),
    (url_event("{}", path="/other"), 404),
    (url_event(json.dumps({"texts": ["x"] * 2000})), 413),
    (url_event('{"text": "half an emoji: \\ud83d"}'), 200),
)


_DEMANDS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "one short text": lambda most: {"text": "vitamin d"},
    "100 texts of 128 tokens": lambda most: {"texts": [of_length(126)] * 100},
    "the most texts, of 256 tokens": lambda most: {"texts": [of_length(254)] * most},
}
"""What a memory size must be enough for, in this order: from the most texts of a request to the event."""


def _trials(model_folder: Path, dimensions: int, advance: Callable[[], None]) -> list[dict[str, Any]]:
    """Bisect SIZES for the smallest limit under which every demand is met; one row a trial."""
    rows: list[dict[str, Any]] = []

    def works(memory_mb: int) -> bool:
        rows.append(_try(model_folder, memory_mb, max_texts(dimensions)))
        advance()
        return bool(rows[-1]["works"])

    bisect.bisect_left(SIZES, True, key=works)
    return rows


def _try(model_folder: Path, memory_mb: int, most: int) -> dict[str, Any]:
    _forget_files(model_folder)
    seconds: dict[str, float] = {}
    failed = None
    with limited(memory_mb, None) as limits:
        with function(model_folder, memory_mb, limits) as process:
            for name, event in _DEMANDS.items():
                try:
                    answer = process.call(event(most))
                except FunctionEndedError:
                    failed = name
                    break
                answer.check_vectors()
                seconds[name] = answer.seconds
        return {
            "measure": "smallest",
            "memory_mb": memory_mb,
            "works": failed is None,
            "failed": failed,
            "out_of_memory": limits.out_of_memory(),
            "peak_with_page_cache_mb": limits.peak_memory_mb(),
            "demand_seconds": seconds,
        }


def _forget_files(model_folder: Path) -> None:
    """Take the function's files out of the page cache, as far as no other process maps them.

    A page counts in the group of the process that read it first: without this, the model and the libraries would not
    count at all. As page cache they can be given back, so a limit below the whole of them may still be enough.
    """
    folders = [Path(open_artifact(model_folder).folder)]
    for package in ("numpy", "onnxruntime", "orjson", "tokenizers"):
        spec = importlib.util.find_spec(package)
        locations = spec.submodule_search_locations if spec is not None else None
        for location in locations or ():
            folders += [Path(location), Path(location).with_name(f"{package}.libs")]
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
