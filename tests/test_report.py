"""docs/benchmarks.md shows the stored results, all of them, and says what is missing."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cycles, report
from benchmarks.contenders import CONTENDERS, OURS
from benchmarks.instructions import UNRESTRICTED
from benchmarks.results import FOLDER, Result, tables
from export.words import FORMS

pytestmark = pytest.mark.slow

MACHINE = {
    "cpu": "Example CPU",
    "cpu_features": ["avx2"],
    "cpus": 2,
    "memory_gb": 4.0,
    "system": "Linux x86_64",
    "python": "3.11.7",
    "packages": {"onnxruntime": "1.32.0", "torch": "2.13.0"},
}
SPEEDS = {name: 3000.0 + 800 * index for index, name in enumerate(CONTENDERS)}
DISTANCES = {"torch_int8": 0.05, "dynamic_tensor": 0.04, "dynamic_channel": 0.007, "openvino_int8": 0.006, "int8": 6e-4}


def _result(name: str, rows: list[dict[str, Any]], **parameters: Any) -> Result:
    return Result(name, "2026-01-02T03:04:05+00:00", MACHINE, "ab" * 32, parameters, rows)


def _cold_start() -> Result:
    phases = {"interpreter": 0.02, "runtime client": 0.05, "imports": 0.03, "tokenizer": 0.01}
    phases |= {"session": 0.02, "first vector": 0.01}
    rows: list[dict[str, Any]] = [
        {"contender": name, "mode": "library", "files": "page cache", "seconds": [seconds], "peak_memory_mb": [100]}
        for name, seconds in zip((*OURS, "floor"), (4.0, 0.29, 0.15, 0.09), strict=True)
    ]
    for factor, files in enumerate(("page cache", "disk", "slow file system"), start=1):
        inner = {name: [seconds * factor] for name, seconds in phases.items()}
        row = {"contender": "int8", "mode": "function", "files": files, "phases": inner, "peak_memory_mb": [90]}
        rows.append({**row, "ready": [0.12 * factor], "seconds": [0.15 * factor]})
    return _result("cold-start", rows, function_python="3.13")


def _latency() -> Result:
    paths = [*((name, "library") for name in OURS), ("int8", "lambda_handler"), ("int8", "http")]
    rows = [
        {"contender": name, "path": path, "tokens": tokens, "seconds": [tokens / SPEEDS[name]]}
        for name, path in paths
        for tokens in (8, 32, 128, 256)
    ]
    return _result("latency", rows, threads=1)


def _throughput(grid: bool = True) -> Result:
    rows: list[dict[str, Any]] = [
        {"contender": name, "threads": threads, "seconds": [10_000 / speed / threads]}
        for name, speed in SPEEDS.items()
        for threads in (1, 2)
    ]
    for name, speed in SPEEDS.items() if grid else ():
        for batch in (1, 10, 100):
            for tokens in (8, 32, 128, 256):
                seconds = batch * tokens / speed + 0.001
                rows.append({"contender": name, "threads": 1, "batch": batch, "tokens": tokens, "seconds": [seconds]})
    roofline = {"int8_gmacs": [190.0, 200.0, 210.0], "float32_gmacs": [60.0]}
    given = {"corpus": "generated", "texts": 100, "tokens": 10_000, "macs_per_token": 10_616_832}
    return _result("throughput", rows, roofline=roofline, **given)


def _quality(words: bool = True) -> Result:
    rows: list[dict[str, Any]] = []
    for name in CONTENDERS:
        cosine = 1 - DISTANCES.get(name, 0)
        row = {"contender": name, "mean_cosine": cosine, "p1_cosine": cosine, "min_cosine": cosine}
        row |= {"texts": 9, "max_abs_difference": 0.0, "batch_difference": 0.0}
        rows += [row | {"set": "texts"}, row | {"set": "pairs.tsv", "spearman": 0.86}]
    lowest = [{"word": word, "cosine": 0.995} for word in ("nods", "|", "`")]
    for form in FORMS if words else ():
        statistics = {"texts": 1234, "mean_cosine": 0.999, "p1_cosine": 0.998, "min_cosine": 0.995, "lowest": lowest}
        rows.append({"contender": "int8", "set": "vocabulary", "form": form, **statistics})
    return _result("quality", rows, sets={"texts": 9, "pairs.tsv": 9}, bytes=dict.fromkeys(CONTENDERS, 23_000_000))


def _cycles() -> Result:
    rows = [
        {"cpu": cpu, "tokens": tokens, "part": part, "cycles": 1e5 * tokens, "instructions": 2e5 * tokens}
        for cpu in cycles.PROCESSORS
        for tokens in (8, 256)
        for part in (*cycles.PARTS.values(), cycles.REST)
    ]
    clocks = {cpu: {"gigahertz": 2.4, "source": "example"} for cpu in cycles.PROCESSORS}
    return _result("cycles", rows, llvm=19, clocks=clocks)


def _ablation() -> Result:
    rows = [{"variant": name, "set": "texts", "mean_cosine": 0.99, "min_cosine": 0.98} for name in ("whole", "none")]
    return _result("ablation", rows, sets={"texts": 9})


def _memory() -> Result:
    rows: list[dict[str, Any]] = [
        {"measure": "peak", "case": "one short text", "peak_memory_mb": 90.0},
        {"measure": "growth", "requests": [100, 1000, 2000], "rss_mb": [80.0, 90.0, 90.5]},
        {"measure": "smallest", "memory_mb": 128, "works": False},
        {"measure": "smallest", "memory_mb": 144, "works": True},
    ]
    return _result("memory", rows)


def _cost(measured: bool = True) -> Result:
    rows = [
        {
            "memory_mb": memory_mb,
            "vcpus": memory_mb / 1769,
            "vcpus_given": memory_mb / 1769,
            "cold_start_seconds": [200 / memory_mb],
            "short_seconds": [2 / memory_mb + 0.001],
            "short_run_seconds": [2 / memory_mb],
            "corpus_seconds": [1769 / memory_mb],
            "corpus_run_seconds": [1700 / memory_mb],
        }
        for memory_mb in (512, 1024, 1769, 3008)
    ]
    given: dict[str, Any] = {"texts": 100, "tokens": 10_000, "requests": 1, "short_tokens": 8, "read_bytes": 24_000_000}
    given["modelled_seconds"] = {cpu: {"short": 0.002, "corpus": 1.5} for cpu in cycles.PROCESSORS}
    if not measured:
        return _result("cost", [], unavailable="no cgroups", **given)
    return _result("cost", rows, **given)


def _load(samples: bool = True) -> Result:
    counts = {"1.5": 90, "3": 9, "20": 1}
    run = {"measure": "run", "seconds": [1.0], "start_seconds": 0.4, "right": 100, "texts": 90, "tokens": 900}
    kinds = [
        {"measure": "latency", "kind": kind, "requests": 100, "right": 100, "client_ms": counts, "function_ms": inside}
        for kind, inside in (("one text", counts), ("413", {}))
    ]
    rows: list[dict[str, Any]] = [
        {**run, "sent_bytes": 2**20, "received_bytes": 2**21},
        {"measure": "faults", "counts": {}, "examples": []},
        {"measure": "memory", "answered": [50, 100], "rss_mb": [90.0, 90.5]} if samples else _NO_SAMPLES,
        *kinds,
    ]
    return _result("load", rows, requests=100, connections=16, threads=1)


_NO_SAMPLES = {"measure": "memory", "answered": [], "rss_mb": []}


@pytest.fixture
def results() -> Mapping[str, Result]:
    made = [_cold_start(), _latency(), _throughput(), _cycles(), _quality(), _ablation(), _memory(), _cost(), _load()]
    return {result.benchmark: result for result in made}


@pytest.fixture
def folder(results: Mapping[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the results are stored, for a report made of them."""
    for name, result in results.items():
        result.write(tmp_path / "results" / f"{name}.json")
    read = report.stored
    monkeypatch.setattr(report, "stored", lambda: read(tmp_path / "results"))
    return tmp_path


def test_document_has_every_table_of_every_result(results: Mapping[str, Result]) -> None:
    assert set(results) == set(report.SECTIONS)
    text = report.document(results)
    for name, section in report.SECTIONS.items():
        shown = tables(section.figures(results[name]))
        assert shown
        for table in shown:
            assert table.markdown() in text
            assert table.title in text
    assert report.COMMENT in text.splitlines()[:3]
    assert "2 CPUs of type Example CPU" in text


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_stored_row_is_a_line(path: Path, tmp_path: Path) -> None:
    result = Result.read(path)
    lines = path.read_text("utf-8").splitlines()
    assert lines[lines.index(' "rows": [') + 1 : -2] == [
        f"  {json.dumps(row)}{',' * (index < len(result.rows))}" for index, row in enumerate(result.rows, 1)
    ]
    result.write(tmp_path / path.name)
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_modelled_speeds_are_cycles_by_a_clock(results: Mapping[str, Result]) -> None:
    for table in cycles.figures(results["cycles"]):
        assert table.title.startswith("Model, not measured: ")
        assert table.rows[-2:] == [["all", "600,000", "600,000"], ["tokens/s at 2.4 GHz", "4,000", "4,000"]]


def test_results_of_fewer_instructions_follow_the_others(results: Mapping[str, Result]) -> None:
    kept = _throughput(grid=False).with_parameter("instructions", "avx2")
    del kept.parameters["roofline"]["float32_gmacs"]
    text = report.document({**results, "throughput-avx2": kept})
    for table in tables(report.SECTIONS["throughput"].figures(kept)):
        assert table.title.endswith(", AVX2 alone")
        assert table.markdown() in text
    main, whole = (tables(report.SECTIONS["throughput"].figures(each))[0] for each in (kept, results["throughput"]))
    marked = {row[0] for row in main.rows if row[0].endswith(" (all instructions)")}
    assert marked == {f"{CONTENDERS[name].title} (all instructions)" for name in UNRESTRICTED}
    assert text.index(main.title) > text.index(whole.title)


def test_plots_are_written_and_linked(folder: Path) -> None:
    assert report.write(folder / "docs") == []
    links = _links(folder / "docs")
    assert links == {f"benchmarks/{name}.svg" for name in ("cold-start", "throughput", "quality", "cost", "load")}
    for link in links:
        svg = (folder / "docs" / link).read_text("utf-8")
        assert svg.startswith("<?xml")
        assert len(svg) < 60_000, link


def test_the_same_results_give_the_same_bytes(folder: Path) -> None:
    written = []
    for name in ("first", "second"):
        report.write(folder / name)
        paths = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        written.append({path.relative_to(folder / name): path.read_bytes() for path in paths})
    assert len(written[0]) == 6
    assert written[0] == written[1]


@pytest.mark.parametrize("name", list(report.SECTIONS))
def test_a_missing_result_is_named_and_left_out(name: str, folder: Path) -> None:
    (folder / "results" / f"{name}.json").unlink()
    (line,) = report.write(folder / "docs")
    assert f"python -m benchmarks {name}" in line
    assert f"## {report.SECTIONS[name].title}\n" not in (folder / "docs" / report.DOCUMENT).read_text("utf-8")
    assert all((folder / "docs" / link).exists() for link in _links(folder / "docs"))


def test_results_without_the_samples_of_a_plot_have_none(results: Mapping[str, Result]) -> None:
    reduced = {
        **results,
        "throughput": _throughput(grid=False),
        "cost": _cost(measured=False),
        "load": _load(samples=False),
    }
    assert report.plotted(reduced) == ["cold-start", "quality"]
    assert "no cgroups" in report.document(reduced)


def test_the_vocabulary_has_a_table_where_it_was_measured(results: Mapping[str, Result]) -> None:
    title = "Quality on 1,234 words of the vocabulary, each in 5 forms"
    line = r"| 250 times | 0.99900 | 0.99800 | 0.99500 | `nods` 0.9950, `\|` 0.9950, `` ` `` 0.9950 |"
    assert title in report.document(results)
    assert line in report.document(results).splitlines()
    without = {**results, "quality": _quality(words=False)}
    assert title not in report.document(without)
    assert "quality" in report.plotted(without)


def test_each_machine_is_named(results: Mapping[str, Result]) -> None:
    other = Result(**{**vars(results["cost"]), "machine": {**MACHINE, "cpu": "Other CPU"}})
    assert "cost: 2 CPUs of type Other CPU" in report.document({**results, "cost": other})


def test_document_shows_the_stored_results() -> None:
    path = report.DOCS / report.DOCUMENT
    assert path.read_text("utf-8") == report.document(report.stored()), "run python -m benchmarks report"
    links = _links(report.DOCS)
    assert links
    assert {f"benchmarks/{plot.name}" for plot in (report.DOCS / report.PLOTS).iterdir()} == links


def _links(docs: Path) -> set[str]:
    return set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", (docs / report.DOCUMENT).read_text("utf-8")))
