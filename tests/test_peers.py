"""The peers give the model's vectors, absent ones are named, and the grid and the machine's limit are complete."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifact.manifest import open_artifact
from benchmarks import contenders, roofline, throughput
from benchmarks.contenders import CONTENDERS, OURS, available, missing
from benchmarks.corpus import Corpus, generate
from benchmarks.worker import Worker, workers
from handler.embedder import Embedder

pytestmark = pytest.mark.slow

TEXTS = [
    "vitamin d",
    " ".join(f"{number} people" for number in range(200)),  # longer than the model's maximum
    "Wie heißt die Hauptstadt von Österreich?",
    "x",
    " ".join(["school", "world"] * 70),  # longer than the 128 tokens of the published tokenizer.json
    "How much sleep do adults need?",
]


@pytest.fixture(scope="module")
def started(model_folder: Path, source_folder: Path) -> Iterator[dict[str, Worker]]:
    with workers(available(), model_folder, source_folder, threads=1) as found:
        yield {worker.name: worker for worker in found}


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_give_the_models_vectors_in_any_order(
    name: str, started: dict[str, Worker], reference: Callable[[Sequence[str]], np.ndarray]
) -> None:
    if absent := missing(name):
        pytest.skip(absent)
    expected = reference(TEXTS)
    for order in (range(len(TEXTS)), range(len(TEXTS))[::-1]):
        vectors = started[name].embed([TEXTS[row] for row in order])
        assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 384), np.dtype(np.float32))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert (vectors * expected[list(order)]).sum(axis=1).min() >= CONTENDERS[name].min_cosine


@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_have_a_file_of_weights(name: str, model_folder: Path, source_folder: Path) -> None:
    if absent := missing(name):
        pytest.skip(absent)
    assert CONTENDERS[name].weights(model_folder, source_folder).is_file()


def test_missing_packages_are_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = replace(CONTENDERS["int8"], packages=("numpy", "no_such_package"))
    two = replace(CONTENDERS["int8"], packages=("no_such_package", "nor_this_one"))
    monkeypatch.setattr(contenders, "CONTENDERS", {"present": CONTENDERS["int8"], "one": one, "two": two})
    assert missing("present") is None
    expected = "one is left out: no_such_package is missing, install it with: pip install '.[peers]'"
    assert missing("one") == expected
    assert "no_such_package and nor_this_one are missing, install them with: pip" in str(missing("two"))
    assert available.__wrapped__() == ("present",)
    assert f"benchmarks: {expected}\n" in capsys.readouterr().err


def test_roofline_measures_positive_rates() -> None:
    rates = roofline.measure(threads=1)
    assert set(rates) == {"int8_gmacs", "float32_gmacs"}
    for samples in rates.values():
        assert len(samples) == roofline.REPEATS
        assert min(samples) > 0


def test_macs_per_token_are_those_of_the_architecture(model_folder: Path) -> None:
    found = roofline.macs_per_token(Path(open_artifact(model_folder).model("int8")))
    architecture = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert architecture <= found < 1.01 * architecture  # a few columns more, of what corrects the keys' offset


def test_texts_of_the_grid_differ_and_have_the_length(int8: Embedder) -> None:
    for batch, length in throughput.CELLS:
        texts = throughput.texts_of(batch, length)
        assert len(set(texts)) == batch
        assert set(int8.embed(texts[:10]).tokens) == {length}


def test_grid_is_complete(model_folder: Path, source_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "available", lambda: OURS)  # fewer processes to start
    cells, corpus = [(1, 8), (3, 8), (1, 16)], Corpus("generated", generate(10))
    advances: list[None] = []
    result = throughput.run(
        model_folder, source_folder, corpus, [1], 2, lambda: advances.append(None), grid=True, cells=cells
    )
    assert len(advances) == throughput.steps([1], 2, grid=True, cells=cells)
    grid = [row for row in result.rows if "batch" in row]
    assert {(row["contender"], row["threads"], row["batch"], row["tokens"]) for row in grid} == {
        (name, 1, *cell) for name in OURS for cell in cells
    }
    assert len(grid) == len(OURS) * len(cells)
    assert all(len(row["seconds"]) == 2 * throughput.TURN_CALLS for row in grid)
    main, by_cell, limit = throughput.figures(result)
    assert [row[0] for row in main.rows] == [CONTENDERS[name].title for name in OURS]
    assert [len(table.rows) for table in (by_cell, limit)] == [2 * len(OURS), 2]
    for table in (main, by_cell, limit):
        assert {len(row) for row in table.rows} == {len(table.header)}
    assert ("" in by_cell.rows[1], "" in by_cell.rows[0]) == (True, False)  # 3 texts of 16 tokens were not asked for
