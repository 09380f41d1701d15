"""python -m benchmarks cold-start|latency|throughput|cycles|quality|ablation|memory|cost|load|all|report"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import Progress

    from artifact.manifest import ArtifactError
    from benchmarks import (
        ablation,
        cold_start,
        cost,
        cycles,
        instructions,
        latency,
        load,
        memory,
        quality,
        report,
        throughput,
        vocabulary,
    )
    from benchmarks.corpus import (
        Corpus,
        CorpusError,
        Pairs,
        Retrieval,
        mixed_length,
        read_pairs,
        read_retrieval,
        read_texts,
    )
    from benchmarks.readme import README, updated
    from benchmarks.results import FOLDER, Result, noise, tables
    from benchmarks.worker import WrongVectorsError
    from deploy import DeployError
    from export import ExportError
    from export.source import DEFAULT_MODEL, fetch
    from export.texts import EXTREME, VERIFICATION_TEXTS
except ModuleNotFoundError as error:
    sys.exit(f"benchmarks: {error.name} is missing, install it with: pip install '.[export,local,benchmarks]'")


ALL = ("cold-start", "latency", "throughput", "quality", "memory", "cost", "load")
"""What `all` measures: everything but the ablation, which is about the recipe and not the artifact, and the cycles,
which are modelled with tools that few have."""
MEMORY_REQUESTS = 10_000


def main() -> int:
    arguments = _parse_arguments()
    if arguments.instructions:
        # For the processes that are measured, and for this one, before anything reads them.
        os.environ.update(instructions.environment(arguments.instructions))
    try:
        for name in ALL if arguments.benchmark == "all" else [arguments.benchmark]:
            if name != "report":
                _measure_and_show(name, arguments)
        if arguments.benchmark in ("all", "report"):
            for line in report.write():
                print(line)
            README.write_text(updated(README.read_text("utf-8")), "utf-8")
    except (
        ArtifactError,
        CorpusError,
        cycles.CyclesError,
        DeployError,
        ExportError,
        load.LoadError,
        WrongVectorsError,
    ) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


def _measure_and_show(name: str, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as workdir, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None)

        def total(steps: int) -> None:
            progress.update(task, total=steps)

        source = arguments.source or fetch(DEFAULT_MODEL, None, None, Path(workdir)).folder
        result = _measure(name, arguments, source, total, lambda: progress.advance(task))
    if arguments.instructions:
        result = result.with_parameter("instructions", arguments.instructions)
    target = arguments.output or FOLDER / f"{report.file_name(name, arguments.instructions)}.json"
    result.write(target)
    for table in tables(report.SECTIONS[name].figures(result)):
        table.show()
    for what, reason in result.parameters.get("left_out", {}).items():
        print(f"left out: {what}: {reason}")
    for row in result.rows:
        label = " ".join(str(row[key]) for key in _LABELS if key in row)
        if len(row.get("seconds", [])) > 1 and (warning := noise(label, row["seconds"])):
            print(warning)
    print(f"written to {target}")
    if name == "load":
        load.check(result)  # after it is stored, because it says what was wrong


_LABELS = ("contender", "mode", "path", "files", "threads", "batch", "tokens")


def _measure(
    name: str,
    arguments: argparse.Namespace,
    source: Path,
    total: Callable[[int], None],
    advance: Callable[[], None],
) -> Result:
    folder, rounds = arguments.model_folder, arguments.rounds
    if name == "cold-start":
        total(cold_start.steps(rounds))
        return cold_start.run(folder, source, rounds, advance)
    if name == "latency":
        total(latency.steps(rounds))
        return latency.run(folder, source, arguments.threads[0], rounds, advance)
    if name == "throughput":
        total(throughput.steps(arguments.threads, rounds, arguments.grid))
        corpus = mixed_length(arguments.texts, arguments.corpus)
        return throughput.run(folder, source, corpus, arguments.threads, rounds, advance, arguments.grid)
    if name == "memory":
        requests = arguments.requests or MEMORY_REQUESTS
        total(memory.steps(requests))
        return memory.run(folder, requests, advance)
    if name == "load":
        requests = arguments.requests or load.REQUESTS
        total(load.steps(requests))
        return load.run(folder, arguments.threads[0], requests, advance)
    if name == "cycles":
        total(cycles.steps())
        return cycles.run(folder, advance)
    if name == "cost":
        total(rounds * len(cost.MEMORY_SIZES))
        return cost.run(folder, arguments.texts, rounds, advance)
    corpora, pairs, retrievals = _quality_sets(arguments.corpus)
    if name == "ablation":
        total(len(ablation.VARIANTS))
        return ablation.run(folder, corpora, pairs, advance)
    words = [] if arguments.corpus else vocabulary.words_of(folder, arguments.words)
    total(len(corpora) + len(pairs) + len(retrievals) + vocabulary.steps(words))
    return quality.run(folder, source, corpora, pairs, retrievals, advance, words)


def _quality_sets(path: Path | None) -> tuple[list[Corpus], list[Pairs], list[Retrieval]]:
    """The file given with --corpus, or the project's own texts and those in the folder EVAL_DATA."""
    if path is not None:
        if path.suffix == ".tsv":
            return [], [read_pairs(path)], []
        return [Corpus(path.name, read_texts(path))], [], []
    corpora = [Corpus("verification texts", VERIFICATION_TEXTS), Corpus("extreme texts", EXTREME)]
    if not (folder := os.environ.get("EVAL_DATA")):
        return corpora, [], []
    data = Path(folder)
    for name in ("naughty_strings.jsonl", "unicode_multilingual.jsonl"):
        corpora.append(Corpus(name, read_texts(data / name)))
    return corpora, [read_pairs(data / "stsb_dev.tsv")], [read_retrieval(data / "throughput_corpus.jsonl")]


_WHICH = (
    "all: every one but ablation and cycles, then the report; "
    "report: docs/benchmarks.md and the README's figures, from the stored results"
)
_REQUESTS = f"memory, load: number of requests; default: {MEMORY_REQUESTS:,} and {load.REQUESTS:,}"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare this project with others.")
    parser.add_argument("benchmark", choices=[*report.SECTIONS, "all", "report"], help=_WHICH)
    parser.add_argument("--model-folder", type=Path, default=Path("build/ml-models/all-MiniLM-L6-v2"), metavar="DIR")
    parser.add_argument("--source", type=Path, metavar="DIR", help="sentence-transformers model; default: fetched")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="your own texts (JSONL or lines) or pairs (TSV)")
    parser.add_argument(
        "--texts", type=int, default=600, metavar="N", help="throughput, cost: number of texts; default: %(default)s"
    )
    parser.add_argument(
        "--no-grid", dest="grid", action="store_false", help="throughput: only the corpus, without batches by length"
    )
    parser.add_argument(
        "--words",
        type=int,
        metavar="N",
        help="quality: words of the vocabulary; default: all, which takes 15 min",
    )
    parser.add_argument("--requests", type=int, metavar="N", help=_REQUESTS)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument(
        "--instructions",
        choices=instructions.TITLES,
        metavar="NAME",
        help=f"{', '.join(report.RESTRICTED)}: limit contenders, where possible, to {', '.join(instructions.TITLES)}",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/BENCHMARK.json")
    arguments = parser.parse_args()
    if arguments.instructions and arguments.benchmark not in report.RESTRICTED:
        parser.error(f"--instructions is for {', '.join(report.RESTRICTED)}, not for {arguments.benchmark}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
