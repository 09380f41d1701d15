"""The benchmarks run, refuse wrong vectors, and the README shows what is stored."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from artifact.manifest import open_artifact
from benchmarks import ablation, latency, quality, readme, vocabulary
from benchmarks.__main__ import ALL
from benchmarks.contenders import CONTENDERS, OURS, available
from benchmarks.corpus import (
    Corpus,
    CorpusError,
    Retrieval,
    generate,
    mixed_length,
    of_length,
    read_pairs,
    read_retrieval,
    read_texts,
)
from benchmarks.instructions import TITLES
from benchmarks.report import RESTRICTED, SECTIONS, file_name
from benchmarks.results import FOLDER, Result, noise, tables
from benchmarks.worker import WrongVectorsError, check_vectors
from export.texts import ORDINARY
from export.verify import cosines
from export.words import FORMS
from handler.embedder import Embedder
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow


def run_benchmark(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "EVAL_DATA"}
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("benchmark_name", "arguments", "contenders"),
    [
        ("cold-start", ["--rounds", "1"], [*OURS, "floor"]),
        ("latency", ["--rounds", "1", "--threads", "1"], OURS),
        ("throughput", ["--rounds", "1", "--threads", "1", "--texts", "20", "--no-grid"], None),
        ("quality", ["--words", "20"], None),
    ],
)
def test_benchmarks_write_raw_samples(
    benchmark_name: str,
    arguments: list[str],
    contenders: list[str] | None,
    source_folder: Path,
    model_folder: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "result.json"
    ran = run_benchmark(
        benchmark_name, "--source", source_folder, "--model-folder", model_folder, "--output", output, *arguments
    )
    assert ran.returncode == 0, ran.stderr
    result = Result.read(output)
    assert result.benchmark == benchmark_name
    assert {row["contender"] for row in result.rows} == set(contenders or available())
    assert result.machine["packages"]["onnxruntime"]
    assert len(result.manifest_sha256) == 64
    for row in result.rows:
        assert all(seconds > 0 for seconds in row.get("seconds", [1]))
        if row.get("set") == "verification texts":
            assert row["min_cosine"] > CONTENDERS[row["contender"]].min_cosine
    for table in tables(SECTIONS[benchmark_name].figures(result)):
        for cell in table.rows[0]:
            assert cell in ran.stdout


def test_latency_is_measured_on_every_path(source_folder: Path, model_folder: Path) -> None:
    steps = []
    rows = latency.run(model_folder, source_folder, 1, 1, lambda: steps.append(1)).rows
    assert len(steps) == latency.steps(rounds=1) == len(rows)
    assert {row["path"] for row in rows} == set(latency.PATHS)
    assert {len(row["seconds"]) for row in rows} == {10}


def test_quality_takes_the_readers_own_pairs(source_folder: Path, tmp_path: Path) -> None:
    rows = [("A man plays the guitar", "Someone plays an instrument", 4.0), ("a cat", "the budget", 0.0)]
    rows += [("how to sleep better", "advice for good sleep", 4.5)]
    lines = ["sentence1\tsentence2\tscore", *(f"{left}\t{right}\t{score}" for left, right, score in rows)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    output = tmp_path / "result.json"
    ran = run_benchmark("quality", "--source", source_folder, "--corpus", tmp_path / "pairs.tsv", "--output", output)
    assert ran.returncode == 0, ran.stderr
    result = Result.read(output)
    assert {round(row["spearman"], 2) for row in result.rows} == {1.0}
    assert set(result.parameters["bytes"]) == set(available())
    assert 22e6 < result.parameters["bytes"]["int8"] < 25e6 < result.parameters["bytes"]["fp32"]


def test_quality_takes_the_readers_own_queries_and_passages(source_folder: Path, model_folder: Path) -> None:
    texts = [text for text in ORDINARY if len(text) < 80]
    retrieval = Retrieval("mine", texts[:10], texts[10:])
    rows = quality.run(model_folder, source_folder, [], [], [retrieval], lambda: None).rows
    kept = {row["contender"]: row["kept_of_ten"] for row in rows}
    assert kept["torch"] == kept["fp32"] == 1
    assert 0.9 < kept["int8"] <= 1
    batch = {row["contender"]: row["batch_difference"] for row in rows}
    assert batch["int8"] < 1e-6 < 1e-3 < batch["dynamic_channel"]


def test_quality_on_words_is_that_of_each_form(source_folder: Path, model_folder: Path) -> None:
    words, calls = ["cat", "`", "|", "nods", "dog", "sun", "tea"], []
    rows = quality.run(model_folder, source_folder, [], [], [], lambda: calls.append(1), words).rows
    assert len(calls) == vocabulary.steps(words) == len(FORMS)
    assert [row["form"] for row in rows] == list(FORMS)
    embedders = [Embedder.load(model_folder, precision) for precision in ("int8", "fp32")]
    for row in rows:
        texts = [FORMS[row["form"]](word) for word in words]
        expected = cosines(*(embedder.embed(texts).vectors for embedder in embedders))
        assert (row["texts"], row["contender"], row["set"]) == (len(words), "int8", vocabulary.SET)
        assert row["min_cosine"] == pytest.approx(expected.min(), abs=1e-6)
        assert row["mean_cosine"] == pytest.approx(expected.mean(), abs=1e-6)
        lowest = [entry["cosine"] for entry in row["lowest"]]
        assert lowest == pytest.approx(sorted(expected)[: vocabulary.LOWEST], abs=1e-6)
        assert row["lowest"][0]["word"] == words[int(expected.argmin())]
    shown = vocabulary.figures(rows)
    assert "7 words" in shown.title
    assert {len(line.replace(r"\|", "").split("|")) for line in shown.markdown().splitlines()} == {
        len(shown.header) + 2
    }


def test_words_are_the_whole_vocabulary_or_a_sample_of_it(model_folder: Path) -> None:
    whole = vocabulary.words_of(model_folder, None)
    assert len(whole) > 23_000
    sample = vocabulary.words_of(model_folder, 300)
    assert len(sample) == len(set(sample)) == 300
    assert set(sample) < set(whole)
    assert vocabulary.words_of(model_folder, 0) == []
    assert vocabulary.steps(sample) == 2 * len(FORMS)


def test_queries_and_passages_are_told_apart_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    kinds = ["query", "passage", "question", "sentences"]
    path.write_text("\n".join(json.dumps({"text": kind[:2], "kind": kind}) for kind in kinds) + "\n")
    assert read_retrieval(path) == Retrieval("corpus.jsonl", ["qu", "qu"], ["pa"])
    path.write_text('{"text": "no kind"}\n')
    with pytest.raises(CorpusError, match=r"cannot read queries and passages from .*KeyError"):
        read_retrieval(path)


def test_ablation_measures_what_the_recipe_brings(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = {"none of these": ablation.VARIANTS["none of these"]}
    monkeypatch.setattr(ablation, "VARIANTS", naive)
    (row,) = ablation.run(model_folder, [Corpus("ordinary", ORDINARY)], [], lambda: None).rows
    whole = open_artifact(model_folder).manifest.precisions["int8"].parity
    assert 0.9 < row["mean_cosine"] < 0.999 < whole.mean_cosine


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", "no json"), ("b.jsonl", '{"texts": 1}'), ("c.jsonl", '["x"]'), ("d.tsv", "x\ty\n"), ("e.tsv", "")],
)
def test_unreadable_corpora_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    ran = run_benchmark("quality", "--source", tmp_path, "--corpus", tmp_path / name)
    assert ran.returncode == 1
    assert (
        f"benchmarks: cannot read {'pairs' if name.endswith('.tsv') else 'texts'} from {tmp_path / name}" in ran.stderr
    )
    with pytest.raises(CorpusError):
        read_pairs(tmp_path / "missing.tsv")


def test_wrong_vectors_do_not_count() -> None:
    class Fake:
        def __init__(self, name: str, vectors: np.ndarray) -> None:
            self.name, self.vectors = name, vectors

        def embed(self, texts: list[str]) -> np.ndarray:
            return self.vectors

    right = np.eye(2, 384, dtype=np.float32)
    check_vectors([Fake("torch", right), Fake("int8", right)], ["a", "b"])  # type: ignore[list-item]
    with pytest.raises(WrongVectorsError, match=r"int8 gives cosine 0\.0000 to torch"):
        check_vectors([Fake("torch", right), Fake("int8", right[::-1])], ["a", "b"])  # type: ignore[list-item]


def test_lengths_are_what_they_say(int8: Embedder) -> None:
    assert int8.embed([of_length(length - 2) for length in (8, 32, 128, 256)]).tokens == [8, 32, 128, 256]


def test_generated_texts_repeat_and_mix_lengths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EVAL_DATA", raising=False)
    assert mixed_length(50, None).texts == generate(50)
    assert len({len(text.split()) for text in generate(50)}) > 20
    (tmp_path / "odd.jsonl").write_text('{"text": "one\u2028line"}\n{"text": "b"}\n', "utf-8")
    assert read_texts(tmp_path / "odd.jsonl") == ["one\u2028line", "b"]
    (tmp_path / "mine.txt").write_text("one\ntwo\nthree\n")
    assert mixed_length(2, tmp_path / "mine.txt").texts == read_texts(tmp_path / "mine.txt")[:2] == ["one", "two"]


def test_noise_is_reported() -> None:
    assert noise("steady", [1.0, 1.01, 0.99, 1.02, 1.0]) is None
    assert "samples range from" in str(noise("loud", [1.0, 2.0, 1.0, 3.0, 1.0]))


def test_readme_shows_the_real_answer(int8: Embedder) -> None:
    text = readme.README.read_text("utf-8")
    answer = next(line for line in text.splitlines()[:25] if line.startswith('{"embedding":['))
    first, last = answer.removeprefix('{"embedding":[').partition("]")[0].split(",...,")
    shown = [float(number) for number in (*first.split(","), last)]
    (vector,) = int8.embed(["vitamin d"]).vectors
    np.testing.assert_allclose(shown, [*vector[:3], vector[-1]], rtol=1e-7)


def test_readme_shows_the_stored_results() -> None:
    text = readme.README.read_text("utf-8")
    assert readme.updated(text) == text, "run python -m benchmarks report"
    kept_to_less = {file_name(name, each) for name in RESTRICTED for each in TITLES}
    assert {path.stem for path in FOLDER.glob("*.json")} - kept_to_less == set(SECTIONS) == {*ALL, "ablation", "cycles"}
    with pytest.raises(ValueError, match="has no part between"):
        readme.updated("nothing")
