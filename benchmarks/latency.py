"""Milliseconds for one text, by its length and by how it is asked for."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks import instructions
from benchmarks.contenders import OURS
from benchmarks.corpus import of_length
from benchmarks.memory import url_event
from benchmarks.results import Figures, Result
from benchmarks.worker import WrongVectorsError, check_vectors, workers

LENGTHS = (8, 32, 128, 256)
"""Tokens, special tokens included."""
PATHS = {
    "library": "",
    "lambda_handler": ", inside lambda_handler",
    "http": ", over HTTP through python -m local",
}

Ask: TypeAlias = Callable[[str, int], tuple[list[float], list[float]]]
"""A text and how often to ask for it, to the seconds of each time and the vector."""

_HANDLER = """
import json, os, sys, time
answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # the function logs there
from handler.app import lambda_handler
for line in sys.stdin:
    event, repeat = json.loads(line)
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        answer = lambda_handler(event, None)
        seconds.append(time.perf_counter() - began)
    print(json.dumps([seconds, json.loads(answer["body"])["embedding"]]), file=answers, flush=True)
"""


def run(model_folder: Path, source: Path, threads: int, rounds: int, advance: Callable[[], None]) -> Result:
    """Embed single texts, ten times a turn, in turns of all contenders and, for INT8, of the service's two paths."""
    texts = {length: of_length(length - 2) for length in LENGTHS}
    samples: dict[tuple[str, str, int], list[float]] = {}
    with (
        workers(OURS, model_folder, source, threads) as contenders,
        _handler(model_folder, threads) as handler,
        _local(model_folder, threads) as local,
    ):
        check_vectors(contenders, list(texts.values()))
        (int8,) = (worker for worker in contenders if worker.name == "int8")
        paths: dict[str, Ask] = {"lambda_handler": handler, "http": local}
        for length, text in texts.items():
            for path, ask in paths.items():
                if not np.array_equal(np.array(ask(text, 1)[1], np.float32), int8.embed([text])[0]):
                    raise WrongVectorsError(f"{path} gives another vector than the library for {length} tokens")
        for _ in range(rounds):
            for length, text in texts.items():
                for worker in contenders:
                    samples.setdefault((worker.name, "library", length), []).extend(worker.time([text], repeat=10))
                    advance()
                for path, ask in paths.items():
                    samples.setdefault(("int8", path, length), []).extend(ask(text, 10)[0])
                    advance()
    rows: list[dict[str, Any]] = [
        {"contender": name, "path": path, "tokens": length, "seconds": seconds}
        for (name, path, length), seconds in samples.items()
    ]
    return Result.new("latency", model_folder, {"threads": threads, "rounds": rounds}, rows)


def steps(rounds: int) -> int:
    """How often `run` advances."""
    return rounds * len(LENGTHS) * (len(OURS) + len(PATHS) - 1)


def figures(result: Result) -> list[Figures]:
    cells = {
        (row["contender"], row["path"], row["tokens"]): statistics.median(row["seconds"]) * 1000 for row in result.rows
    }
    threads = result.parameters["threads"]
    return [
        Figures(
            f"Latency of one text, ms, median, {threads} thread{'s' if threads > 1 else ''}"
            f"{instructions.suffix(result)}",
            ["", *(f"{length} tokens" for length in LENGTHS)],
            [
                [
                    instructions.title(name, result) + PATHS[path],
                    *(f"{cells[name, path, length]:.1f}" for length in LENGTHS),
                ]
                for name, path in dict.fromkeys((name, path) for name, path, _ in cells)
            ],
        )
    ]


@contextmanager
def _child(command: Sequence[str], model_folder: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    model_folder = model_folder.resolve()
    environment = {
        **os.environ,
        "MODEL_CACHE_DIR": str(model_folder.parent),
        "MODEL_NAME": model_folder.name,
        "MODEL_THREADS": str(threads),
    }
    with subprocess.Popen(  # noqa: S603
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # local logs every request
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def _handler(model_folder: Path, threads: int) -> Iterator[Ask]:
    with _child(["-c", _HANDLER], model_folder, threads) as process:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  they are pipes
        requests, answers = process.stdin, process.stdout

        def ask(text: str, repeat: int) -> tuple[list[float], list[float]]:
            print(json.dumps([url_event(json.dumps({"text": text})), repeat]), file=requests, flush=True)
            if not (answer := answers.readline()):
                raise RuntimeError(f"lambda_handler ended with status {process.wait()}")
            seconds, vector = json.loads(answer)
            return seconds, vector

        yield ask


@contextmanager
def _local(model_folder: Path, threads: int) -> Iterator[Ask]:
    with _child(["-m", "local", "--port", "0"], model_folder, threads) as process:
        assert process.stdout is not None  # noqa: S101  it is a pipe
        ready = next((line for line in process.stdout if line.startswith("ready: ")), None)
        if ready is None:
            raise RuntimeError(f"python -m local ended with status {process.wait()}")
        # The function's log: a pipe that nobody reads would fill up and stop it.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        connection = http.client.HTTPConnection(ready.split("http://")[1].split("/")[0])
        connection.connect()

        def ask(text: str, repeat: int) -> tuple[list[float], list[float]]:
            body = json.dumps({"text": text})
            seconds = []
            for _ in range(repeat):
                began = time.perf_counter()
                connection.request("POST", "/embed", body, {"content-type": "application/json"})
                answer = connection.getresponse().read()
                seconds.append(time.perf_counter() - began)
            return seconds, json.loads(answer)["embedding"]

        try:
            yield ask
        finally:
            connection.close()
