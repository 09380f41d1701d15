"""A contender in a process of its own, so that none meets another's threads, allocator or imports."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.contenders import CONTENDERS, REFERENCE, Vectors, limit_threads


class WrongVectorsError(Exception):
    """A contender's vectors are not those of the model, so its time means nothing."""


class Worker:
    """The parent's end."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name = name
        self._connection = connection

    def time(self, texts: Sequence[str], repeat: int = 1) -> list[float]:
        """Seconds of each of `repeat` calls."""
        self._connection.send((list(texts), repeat))
        seconds, self._vectors = self._connection.recv()
        return list(seconds)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors, outside of any timing."""
        self.time(texts)
        vectors: Vectors = self._vectors
        return vectors


@contextmanager
def workers(names: Sequence[str], model_folder: Path, source: Path, threads: int) -> Iterator[list[Worker]]:
    """Loaded workers, one a contender; they end with the block."""
    for name in names:
        CONTENDERS[name].weights(model_folder, source)  # makes what is missing, so that no worker does it
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        started = []
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, name, model_folder, source, threads), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            started.append(Worker(name, ours))
        yield started


def check_vectors(contenders: Sequence[Worker], texts: Sequence[str]) -> None:
    """Raise WrongVectorsError unless every contender agrees with the reference, which is one of them."""
    vectors = {worker.name: worker.embed(texts) for worker in contenders}
    for name, found in vectors.items():
        lowest = float(np.einsum("ij,ij->i", found, vectors[REFERENCE]).min())
        if not lowest >= CONTENDERS[name].min_cosine:
            raise WrongVectorsError(f"{name} gives cosine {lowest:.4f} to {REFERENCE} for one of {len(texts)} texts")


def _serve(connection: Connection, name: str, model_folder: Path, source: Path, threads: int) -> None:
    limit_threads(threads)
    encode = CONTENDERS[name].load(model_folder, source, threads)
    while True:
        try:
            texts, repeat = connection.recv()
        except EOFError:
            return
        seconds = []
        for _ in range(repeat):
            started = time.perf_counter()
            vectors = encode(texts)
            seconds.append(time.perf_counter() - started)
        connection.send((seconds, vectors))
