"""Many mixed requests to one environment: is each answered rightly and once, how fast, does memory stay flat? Linux.

An environment handles one request at a time, as Lambda's do; what comes meanwhile waits, here inside `python -m local`.
The client, `python -m local` and the function share the machine's CPUs. MB are 2**20 bytes.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil

from benchmarks.load_requests import ANSWER_SECONDS, KINDS, LARGE, Answer, Pool, Request, WrongAnswerError, mixed
from benchmarks.results import Figures, Result

HANDLER = "handler.app.lambda_handler"
ROOT = Path(__file__).parents[1]

REQUESTS = 100_000
CONNECTIONS = 16
"""Kept alive; each has one request under way."""
MEMORY_SAMPLES = 400
FAULTS_KEPT = 10
"""Failures of each sort that are stored whole; the others are counted."""
STEP = 1.02
"""Ratio of neighbouring milliseconds in a histogram, so that a percentile is right within 1 %."""
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


class LoadError(Exception):
    """Requests were not answered as documented; the message counts and shows them."""


def steps(requests: int) -> int:
    """How often `run` calls `advance`."""
    return -(-requests // _sample_every(requests))


def _sample_every(requests: int) -> int:
    return -(-requests // MEMORY_SAMPLES)


def run(model_folder: Path, threads: int, requests: int, advance: Callable[[], None]) -> Result:
    """Send that many requests and check each answer. What was wrong is in the result: `check` raises it."""
    pool = Pool.load(model_folder)
    notes = Notes(requests)
    started, seconds = asyncio.run(_drive(model_folder, threads, pool, notes, advance))
    notes.finish()
    rows = [
        {
            "measure": "run",
            "seconds": [seconds],
            "start_seconds": started,
            "right": notes.right.total(),
            "sent_bytes": notes.sent_bytes,
            "received_bytes": notes.received_bytes,
            "texts": notes.log.texts,
            "tokens": notes.log.tokens,
        },
        {"measure": "faults", "counts": dict(notes.fault_counts), "examples": notes.faults},
        {"measure": "memory", "answered": notes.sampled_at, "rss_mb": notes.rss_mb},
        *(notes.row(kind) for kind in [*KINDS, *LARGE] if notes.sent[kind]),
    ]
    parameters = {"requests": requests, "connections": CONNECTIONS, "threads": threads}
    return Result.new("load", model_folder, parameters, rows)


@dataclass
class Log:
    """What the function wrote into its log, by request id."""

    milliseconds: dict[str, float] = field(default_factory=dict)
    """Inside the function, until its answer was written."""
    repeated: list[str] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0

    def take(self, line: bytes) -> None:
        """Read a line of the log, if it is the one that ends a request."""
        if not line.startswith(b"{") or b'"latency_ms":' not in line:
            return
        entry = orjson.loads(line)
        if entry["request_id"] in self.milliseconds:
            self.repeated.append(entry["request_id"])
        self.milliseconds[entry["request_id"]] = entry["latency_ms"]
        self.texts += entry["texts"]
        self.tokens += entry["tokens"]


class Notes:
    """What is known of the run, request by request."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.log = Log()
        self.sent: Counter[str] = Counter()
        """Requests, and below those that were answered rightly, by kind."""
        self.right: Counter[str] = Counter()
        self.sent_bytes = self.received_bytes = 0
        """Of bodies."""
        self.faults: list[dict[str, Any]] = []
        self.fault_counts: Counter[str] = Counter()
        self.sampled_at: list[int] = []
        """Requests done when the memory was sampled."""
        self.rss_mb: list[float] = []
        self.processes: set[int] = set()
        self._outcomes = bytearray(requests)
        self._kinds: dict[str, str] = {}
        """Request id of each answer -> kind of request."""
        self._client_ms: dict[str, list[float]] = {}

    def answered(self, number: int, kind: str, request: Request, answer: Answer, seconds: float, pool: Pool) -> None:
        """Check an answer."""
        self._outcome(number, kind)
        self.received_bytes += len(answer.body)
        self._client_ms.setdefault(kind, []).append(seconds * 1000)
        request_id = answer.headers.get("x-request-id", "")
        repeated = request_id in self._kinds
        if request_id and not repeated:
            self._kinds[request_id] = kind
        try:
            request.expected.check(answer, pool)
            if request.expected.handled and not request_id:
                raise WrongAnswerError("wrong header", "no x-request-id")
            if repeated:
                raise WrongAnswerError("id used twice", f"x-request-id {request_id}")
        except WrongAnswerError as error:
            self.fault(error.what, str(error), number, kind)
        else:
            self.right[kind] += 1

    def unanswered(self, number: int, kind: str, error: Exception) -> None:
        """The connection broke, or nothing came in time."""
        self._outcome(number, kind)
        self.fault("no answer", repr(error), number, kind)

    def fault(self, what: str, message: str, number: int | None = None, kind: str = "") -> None:
        """Count what is wrong, and keep the first ones."""
        self.fault_counts[what] += 1
        if self.fault_counts[what] <= FAULTS_KEPT:
            self.faults.append({"fault": what, "message": message, "request": number, "kind": kind})

    def finish(self) -> None:
        """Compare the answers with the function's log, which must have each once and no other."""
        for number, outcomes in enumerate(self._outcomes):
            if outcomes != 1:
                self.fault("not answered once", f"{outcomes} outcomes", number)
        for request_id in self.log.repeated:
            self.fault("logged twice", request_id)
        for request_id in self._kinds.keys() - self.log.milliseconds.keys():
            self.fault("not logged", request_id, kind=self._kinds[request_id])
        for request_id in self.log.milliseconds.keys() - self._kinds.keys():
            self.fault("handled, and no answer came", request_id)
        if len(self.processes) > 1:
            self.fault("process replaced", f"the function ran in {len(self.processes)} processes")

    def row(self, kind: str) -> dict[str, Any]:
        """The result's row of a kind."""
        inside = [
            self.log.milliseconds[name]
            for name, of in self._kinds.items()
            if of == kind and name in self.log.milliseconds
        ]
        return {
            "measure": "latency",
            "kind": kind,
            "requests": self.sent[kind],
            "right": self.right[kind],
            "client_ms": histogram(self._client_ms.get(kind, [])),
            "function_ms": histogram(inside),
        }

    def _outcome(self, number: int, kind: str) -> None:
        self._outcomes[number] += 1
        self.sent[kind] += 1


class MemorySampler:
    """Resident memory of the runtime client, the one child of `python -m local`."""

    def __init__(self, local_pid: int, notes: Notes) -> None:
        self._local = psutil.Process(local_pid)
        self._child: Any = None
        self._notes = notes

    def sample(self, done: int) -> None:
        """Record the memory; nothing if there is no such process, since requests will fail then."""
        try:
            if self._child is None or not self._child.is_running():
                (self._child,) = self._local.children()
            size = self._child.memory_info().rss
        except (psutil.Error, ValueError):
            self._child = None
            return
        self._notes.processes.add(self._child.pid)
        self._notes.sampled_at.append(done)
        self._notes.rss_mb.append(round(size / 2**20, 2))


async def _drive(
    model_folder: Path, threads: int, pool: Pool, notes: Notes, advance: Callable[[], None]
) -> tuple[float, float]:
    """Seconds that the service took to start, and that all requests took."""
    queue, every = mixed(notes.requests), _sample_every(notes.requests)
    done = 0

    async def connection(session: aiohttp.ClientSession) -> None:
        nonlocal done
        for number, kind, request in queue:
            await _send(session, number, kind, request, notes, pool)
            done += 1
            if done % every == 0 or done == notes.requests:
                sampler.sample(done)
                advance()

    began = time.perf_counter()
    async with _service(model_folder, threads, notes.log) as (process, url):
        sampler = MemorySampler(process.pid, notes)
        started = time.perf_counter()
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(connection(session) for _ in range(CONNECTIONS)))
        return started - began, time.perf_counter() - started


async def _send(
    session: aiohttp.ClientSession, number: int, kind: str, request: Request, notes: Notes, pool: Pool
) -> None:
    headers = {"content-type": request.content_type}
    notes.sent_bytes += len(request.body)
    began = time.perf_counter()
    try:
        async with session.request(request.method, request.path, data=request.body, headers=headers) as response:
            answer = Answer(response.status, response.headers, await response.read())
    except (aiohttp.ClientError, TimeoutError) as error:
        notes.unanswered(number, kind, error)
        return
    notes.answered(number, kind, request, answer, time.perf_counter() - began, pool)


@asynccontextmanager
async def _service(model_folder: Path, threads: int, log: Log) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`python -m local` on a free port, and its URL. When the block ends, it has ended, and its log has been read."""
    model_folder = model_folder.resolve()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "local", HANDLER, "--port", "0"),
        cwd=ROOT,
        env={
            **os.environ,
            "MODEL_CACHE_DIR": str(model_folder.parent),
            "MODEL_NAME": model_folder.name,
            "MODEL_PRECISION": "int8",
            "MODEL_THREADS": str(threads),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # two lines a request, of local and not of the function
        limit=1 << 20,
    )
    output = process.stdout
    assert output is not None  # noqa: S101  it is a pipe
    reading = None
    try:
        while not (line := await output.readline()).startswith(b"ready: "):
            if not line:
                raise RuntimeError(f"python -m local ended with status {await process.wait()}")
        reading = asyncio.create_task(_read(output, log))
        yield process, line.decode().split("curl -s ")[1].split("/embed")[0]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        if reading is not None:
            await reading


async def _read(stream: asyncio.StreamReader, log: Log) -> None:
    async for line in stream:
        log.take(line)


def check(result: Result) -> None:
    """Raise LoadError if anything was not as documented."""
    rows = _by_measure(result)
    counts, examples = rows["faults"][0]["counts"], rows["faults"][0]["examples"]
    if not counts:
        return
    first = f"{rows['run'][0]['right']} of {result.parameters['requests']} requests were answered as documented"
    shown = [
        f"  {row['fault']}: {row['message']}" + (f" (request {row['request']}: {row['kind']})" if row["kind"] else "")
        for row in examples[:20]
    ]
    raise LoadError("\n".join([f"{first}; found: {_counted(counts)}", *shown]))


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in counts.items())


def figures(result: Result) -> list[Figures]:
    """What the whole run shows, and latencies by kind."""
    rows, requests = _by_measure(result), result.parameters["requests"]
    (total,), (memory,), (faults,) = rows["run"], rows["memory"], rows["faults"]
    (seconds,) = total["seconds"]
    inside, client = (merged(row[name] for row in rows["latency"]) for name in ("function_ms", "client_ms"))
    first, last = quarters(memory["rss_mb"])
    names = ", ".join(SHARES)
    connections = result.parameters["connections"]
    return [
        Figures(
            f"Load on one environment: {requests:,} mixed requests over {connections} connections, each answer checked",
            ["", ""],
            [
                ["answered as documented, every vector right to the bit", f"{total['right']:,}"],
                ["answered otherwise or not at all", f"{requests - total['right']:,}"],
                *([[f"found: {_counted(faults['counts'])}", ""]] if faults["counts"] else []),
                ["requests/s", f"{requests / seconds:,.0f}"],
                ["tokens/s", f"{total['tokens'] / seconds:,.0f}"],
                ["MB/s in bodies: sent, received", _pair(total, seconds)],
                [f"ms inside the function: {names}", _percentiles(inside)],
                [f"ms for the client, waiting for the others included: {names}", _percentiles(client)],
                ["resident memory in the first quarter of the requests, MB, median", f"{first:.1f}"],
                ["resident memory in the last quarter, MB, median", f"{last:.1f}"],
                ["resident memory, MB, largest", f"{max(memory['rss_mb'], default=math.nan):.1f}"],
            ],
        ),
        Figures(
            "The same load by kind of request: ms inside the function, and for the client, which waits for others' too",
            ["", "requests", "right", *SHARES, *(f"client {name}" for name in SHARES)],
            [
                [
                    row["kind"],
                    f"{row['requests']:,}",
                    f"{row['right']:,}",
                    *_cells(row["function_ms"]),
                    *_cells(row["client_ms"]),
                ]
                for row in rows["latency"]
            ],
        ),
    ]


def _by_measure(result: Result) -> dict[str, list[Mapping[str, Any]]]:
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in result.rows:
        rows.setdefault(row["measure"], []).append(row)
    return rows


def _pair(total: Mapping[str, Any], seconds: float) -> str:
    return ", ".join(f"{total[name] / seconds / 2**20:.2f}" for name in ("sent_bytes", "received_bytes"))


def _cells(counts: Mapping[str, int]) -> list[str]:
    return [_short(percentile(counts, share)) for share in SHARES.values()] if counts else [""] * len(SHARES)


def _percentiles(counts: Mapping[str, int]) -> str:
    return ", ".join(_cells(counts)) if counts else "none"


def _short(milliseconds: float) -> str:
    return (
        f"{milliseconds:.2g}"
        if milliseconds < 1
        else f"{milliseconds:,.1f}"
        if milliseconds < 100
        else f"{milliseconds:,.0f}"
    )


def histogram(milliseconds: Iterable[float]) -> dict[str, int]:
    """How many there are of which milliseconds, rounded to a power of STEP; ascending.

    >>> histogram([1.0, 1.001, 7.0])
    {'1': 2, '6.963': 1}
    """
    powers = Counter(round(math.log(max(value, 1e-3), STEP)) for value in milliseconds)
    return {f"{STEP**power:.4g}": powers[power] for power in sorted(powers)}


def merged(histograms: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The histogram of all together."""
    total: Counter[str] = Counter()
    for counts in histograms:
        total.update(counts)
    return dict(sorted(total.items(), key=lambda item: float(item[0])))


def percentile(counts: Mapping[str, int], share: float) -> float:
    """The milliseconds that this share of the values does not exceed (nearest rank).

    >>> percentile({"1": 98, "5": 1, "9": 1}, 0.99)
    5.0
    """
    rank = math.ceil(share * sum(counts.values()))
    for milliseconds, count in counts.items():
        rank -= count
        if rank <= 0:
            return float(milliseconds)
    raise ValueError("a histogram of nothing has no percentiles")


def quarters(samples: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last quarter; NaN where there are no samples."""
    if not samples:
        return math.nan, math.nan
    size = max(1, len(samples) // 4)
    return statistics.median(samples[:size]), statistics.median(samples[-size:])
