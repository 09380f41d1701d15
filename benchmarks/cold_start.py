"""From the start of a fresh process to its first vector. Linux, for the memory figure."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.results import Figures, Result

# Loads one contender, embeds one text, prints the vector's norm and the peak memory.
_PROGRAM = """
import sys
from pathlib import Path
name, model_folder, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if name == "torch":
    from sentence_transformers import SentenceTransformer
    vector = SentenceTransformer(str(source), device="cpu", local_files_only=True).encode(["vitamin d"])[0]
else:
    from handler.embedder import Embedder
    vector = Embedder.load(model_folder, name).embed(["vitamin d"]).vectors[0]
print(float((vector * vector).sum()), flush=True)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), flush=True)
"""


def run(model_folder: Path, source: Path, rounds: int, advance: Callable[[], None]) -> Result:
    """Start every contender once a round, in turns; a first round, not counted, fills the page cache."""
    rows: list[dict[str, Any]] = [{"contender": name, "seconds": [], "peak_memory_mb": []} for name in OURS]
    for counted in [False] + [True] * rounds:
        for row in rows:
            seconds, memory = _start(row["contender"], model_folder, source)
            if counted:
                row["seconds"].append(seconds)
                row["peak_memory_mb"].append(memory)
            advance()
    return Result.new("cold-start", model_folder, {"rounds": rounds, "page_cache": "warm"}, rows)


def figures(result: Result) -> Figures:
    cells = {row["contender"]: row for row in result.rows}
    return Figures(
        "Cold start: fresh process to first vector, page cache warm, median",
        ["", "ms", "peak memory, MB"],
        [
            [
                CONTENDERS[name].title,
                f"{statistics.median(cells[name]['seconds']) * 1000:,.0f}",
                f"{statistics.median(cells[name]['peak_memory_mb']):.0f}",
            ]
            for name in OURS
        ],
    )


def _start(name: str, model_folder: Path, source: Path) -> tuple[float, float]:
    """Seconds to the first vector, and the peak memory in MB."""
    command = [sys.executable, "-c", _PROGRAM, name, str(model_folder), str(source)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603
        assert process.stdout is not None  # noqa: S101  it is a pipe
        first = process.stdout.readline()
        seconds = time.perf_counter() - started
        peak = process.stdout.readline()
    if process.returncode != 0 or abs(float(first) - 1) > 1e-5:
        raise RuntimeError(f"{name} gave no unit vector: exit status {process.returncode}, norm {first!r}")
    return seconds, int(peak) / 1024
