"""python -m benchmarks cold-start|latency|throughput|quality|ablation|readme"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

try:
    from rich.console import Console
    from rich.progress import Progress

    from benchmarks import ablation, cold_start, latency, quality, throughput
    from benchmarks.contenders import CONTENDERS, OURS
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
    from benchmarks.readme import BENCHMARKS, README, updated
    from benchmarks.results import FOLDER, Result, noise
    from benchmarks.worker import WrongVectorsError
    from export import ExportError
    from export.source import DEFAULT_MODEL, fetch
    from export.texts import VERIFICATION_TEXTS
    from handler.artifact import ArtifactError
except ModuleNotFoundError as error:
    sys.exit(f"benchmarks: {error.name} is missing, install it with: pip install '.[export,benchmarks]'")


def main() -> int:
    arguments = _parse_arguments()
    try:
        if arguments.benchmark == "readme":
            README.write_text(updated(README.read_text("utf-8")), "utf-8")
            return 0
        result = _measure(arguments)
    except (ArtifactError, CorpusError, ExportError, WrongVectorsError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    target = arguments.output or FOLDER / f"{result.benchmark}.json"
    result.write(target)
    BENCHMARKS[result.benchmark](result).show()
    for row in result.rows:
        label = " ".join(str(row[key]) for key in ("contender", "threads", "tokens") if key in row)
        if len(row.get("seconds", [])) > 1 and (warning := noise(label, row["seconds"])):
            print(warning)
    print(f"written to {target}")
    return 0


def _measure(arguments: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory() as workdir, Progress(console=Console(stderr=True), transient=True) as progress:
        source = arguments.source or fetch(DEFAULT_MODEL, None, None, Path(workdir)).folder
        task = progress.add_task(arguments.benchmark, total=None)

        def total(steps: int) -> None:
            progress.update(task, total=steps)

        def advance() -> None:
            progress.advance(task)

        if arguments.benchmark == "cold-start":
            total((arguments.rounds + 1) * len(OURS))
            return cold_start.run(arguments.model_folder, source, arguments.rounds, advance)
        if arguments.benchmark == "latency":
            total(arguments.rounds * len(latency.LENGTHS) * len(OURS))
            return latency.run(arguments.model_folder, source, arguments.threads[0], arguments.rounds, advance)
        if arguments.benchmark == "throughput":
            total(len(arguments.threads) * arguments.rounds * len(CONTENDERS))
            corpus = mixed_length(arguments.texts, arguments.corpus)
            return throughput.run(arguments.model_folder, source, corpus, arguments.threads, arguments.rounds, advance)
        corpora, pairs, retrievals = _quality_sets(arguments.corpus)
        if arguments.benchmark == "ablation":
            total(len(ablation.VARIANTS))
            return ablation.run(arguments.model_folder, corpora, pairs, advance)
        total(len(corpora) + len(pairs) + len(retrievals))
        return quality.run(arguments.model_folder, source, corpora, pairs, retrievals, advance)


def _quality_sets(path: Path | None) -> tuple[list[Corpus], list[Pairs], list[Retrieval]]:
    """The reader's own file, or the verification texts and what EVAL_DATA holds."""
    if path is not None:
        if path.suffix == ".tsv":
            return [], [read_pairs(path)], []
        return [Corpus(path.name, read_texts(path))], [], []
    corpora = [Corpus("verification texts", VERIFICATION_TEXTS)]
    if not (folder := os.environ.get("EVAL_DATA")):
        return corpora, [], []
    data = Path(folder)
    for name in ("naughty_strings.jsonl", "unicode_multilingual.jsonl"):
        corpora.append(Corpus(name, read_texts(data / name)))
    return corpora, [read_pairs(data / "stsb_dev.tsv")], [read_retrieval(data / "throughput_corpus.jsonl")]


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare torch with ONNX.")
    parser.add_argument("benchmark", choices=[*BENCHMARKS, "readme"], help="readme writes the README's figures")
    parser.add_argument("--model-folder", type=Path, default=Path("build/ml-models/all-MiniLM-L6-v2"), metavar="DIR")
    parser.add_argument("--source", type=Path, metavar="DIR", help="sentence-transformers model; default: fetched")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="your own texts (JSONL or lines) or pairs (TSV)")
    parser.add_argument("--texts", type=int, default=600, metavar="N", help="of throughput; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/BENCHMARK.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
