"""The load benchmark: every answer is checked, and one that is wrong or missing makes it fail and is named."""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import load, load_requests, plots, readme, report
from benchmarks.load_requests import Answer, Fault, Page, Pool, Refusal, Vectors, WrongAnswerError
from benchmarks.results import Result
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

REQUESTS = 300
VERSION = "c9745ed1-00000000"


@pytest.fixture(scope="module")
def ran(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command prints, and the file that it writes, for the real service."""
    output = tmp_path_factory.mktemp("load") / "load.json"
    arguments = ["load", "--requests", str(REQUESTS), "--source", ".", "--model-folder", str(model_folder)]
    run = [sys.executable, "-m", "benchmarks", *arguments, "--output", str(output)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, output


@pytest.fixture(scope="module")
def result(ran: tuple[str, Path]) -> Result:
    return Result.read(ran[1])


def rows(result: Result, measure: str) -> list[Mapping[str, Any]]:
    return [row for row in result.rows if row["measure"] == measure]


def test_the_real_service_answers_every_request_rightly(result: Result) -> None:
    load.check(result)
    (run,), (faults,), latencies = rows(result, "run"), rows(result, "faults"), rows(result, "latency")
    assert (result.benchmark, result.parameters["requests"], len(result.manifest_sha256)) == ("load", REQUESTS, 64)
    assert run["right"] == sum(row["right"] for row in latencies) == REQUESTS
    assert (faults["counts"], faults["examples"]) == ({}, [])
    assert min(run[name] for name in ("texts", "tokens", "sent_bytes", "received_bytes", "start_seconds")) > 0
    sent = [kind for _, kind, _ in load_requests.mixed(REQUESTS)]
    assert {row["kind"]: row["requests"] for row in latencies} == {kind: sent.count(kind) for kind in sent}


def test_every_latency_is_in_the_result(result: Result) -> None:
    for row in rows(result, "latency"):
        assert sum(row["client_ms"].values()) == sum(row["function_ms"].values()) == row["requests"], row["kind"]
        assert load.percentile(row["function_ms"], 0.5) < load.percentile(row["client_ms"], 0.5)


def test_memory_is_sampled_through_the_run(result: Result) -> None:
    (memory,) = rows(result, "memory")
    assert len(memory["answered"]) == load.steps(REQUESTS)
    assert memory["answered"] == sorted(set(memory["answered"]))
    assert memory["answered"][-1] == REQUESTS
    assert all(50 < mb < 300 for mb in memory["rss_mb"])


def test_tables_are_in_the_terminal_and_in_the_documents(ran: tuple[str, Path], result: Result) -> None:
    document, section = report.document({"load": result}), readme.section(ran[1].parent)
    total, kinds = load.figures(result)
    for table in (total, kinds):
        assert table.title in ran[0]
        assert table.markdown() in document
        for cells in table.rows:
            assert all(cell in ran[0] for cell in cells)
    assert f"{REQUESTS:,} of {REQUESTS:,} mixed requests over 16 connections were answered as documented" in section
    assert total.rows[0] == ["answered as documented, every vector right to the bit", f"{REQUESTS}"]
    assert "![" in document
    assert "(benchmarks/load.svg)" in document


def test_the_plot_names_every_kind_and_is_the_same_each_time(result: Result, tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        plots.save(plots.load({"load": result}), tmp_path / name)
    svg = (tmp_path / "first.svg").read_text("utf-8")
    assert svg == (tmp_path / "second.svg").read_text("utf-8")
    assert len(svg) < 60_000
    assert all(f"{row['kind']}</text>" in svg for row in rows(result, "latency"))


def test_without_a_result_the_report_is_written_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "stored", dict)
    lines = report.write(tmp_path)
    assert any(line.endswith("make it with: python -m benchmarks load") for line in lines)
    assert "## Load\n" not in (tmp_path / report.DOCUMENT).read_text("utf-8")


def test_requests_repeat_and_are_of_every_kind() -> None:
    made = list(load_requests.mixed(3 * load_requests.LARGE_EVERY))
    assert made[:1000] == list(load_requests.mixed(1000))
    assert [number for number, _, _ in made] == list(range(len(made)))
    kinds = [kind for _, kind, _ in made]
    assert set(kinds) == {*load_requests.KINDS, *load_requests.LARGE}
    assert all(kinds.count(kind) == 1 for kind in load_requests.LARGE)
    assert sum(weight for weight, _ in load_requests.KINDS.values()) == 1000


def run_command(handler: str, model_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(load, "HANDLER", f"tests.programs.load_faults.{handler}")
    arguments = ["load", "--requests", str(REQUESTS), "--source", ".", "--model-folder", model_folder]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments), "--output", str(output)])
    return command.main()


@pytest.mark.parametrize(
    ("handler", "faults"),
    [
        ("handler", {"wrong vector", "wrong status", "handled, and no answer came", "process replaced"}),
        ("deadly", {"no answer"}),
        ("forgetful", {"id used twice", "not logged", "logged twice", "handled, and no answer came"}),
    ],
)
def test_a_faulty_service_makes_it_fail_and_is_described(
    handler: str,
    faults: set[str],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(handler, model_folder, tmp_path / "load.json", monkeypatch) == 1
    printed = capsys.readouterr()
    result = Result.read(tmp_path / "load.json")
    (run,), (found,) = rows(result, "run"), rows(result, "faults")
    assert set(found["counts"]) >= faults
    assert f"benchmarks: {run['right']} of {REQUESTS} requests were answered as documented; found: " in printed.err
    for fault in faults:
        assert f"{fault} {found['counts'][fault]}" in printed.err
        assert f"{fault} {found['counts'][fault]}" in printed.out
    kept = [row["fault"] for row in found["examples"]]
    assert all(kept.count(fault) == min(count, load.FAULTS_KEPT) for fault, count in found["counts"].items())
    assert load.figures(result)[0].markdown() in report.document({"load": result})


ROWS = [1, 5]


@pytest.fixture(scope="module")
def pool() -> Pool:
    vectors = np.random.default_rng(0).normal(size=(len(load_requests.TEXTS), 384)).astype(np.float32)
    return Pool(vectors, 2 * vectors, [4] * len(load_requests.TEXTS), frozenset([5]), "org/name", VERSION)


def right_answers(pool: Pool) -> dict[str, tuple[load_requests.Expected, Answer]]:
    """An expectation of each form, and what fulfils it."""
    two, raw = pool.unit[ROWS].tolist(), pool.raw[ROWS[0]].tolist()
    common = {"model": "org/name", "dimensions": 384, "latency": 0.01}
    several = {"embeddings": two, "count": 2, "tokens": 8, "truncated": [1], **common}
    coded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in pool.unit[ROWS]]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(coded)]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    openai = {"object": "list", "data": data, "model": "org/name", "usage": usage, "truncated": [1]}
    error = {
        "message": "no route '/request-9'",
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_route",
    }
    cut, mistake = {"x-truncated-texts": "1"}, {"x-request-id": "a"}
    not_allowed = {"error": {**error, "code": "method_not_allowed"}, "request_id": "a"}
    refusal = {"Message": "Request must be smaller than 6291456 bytes"}
    return {
        "one": (
            Vectors("text", ROWS[:1], normalize=False),
            answer(200, {"embedding": raw, "tokens": 4, "truncated": [], **common}),
        ),
        "several": (Vectors("texts", ROWS), answer(200, several, **cut)),
        "openai": (Vectors("input", ROWS, "base64"), answer(200, openai, **cut)),
        "inputs": (Vectors("inputs", ROWS), answer(200, two, **cut)),
        "404": (Fault(404, "unknown_route", "request-9"), answer(404, {"error": error, "request_id": "a"}, **mistake)),
        "405": (Fault(405, "method_not_allowed"), answer(405, not_allowed, **mistake, allow="GET")),
        "413": (Refusal(), answer(413, refusal)),
        "health": (Page(lambda pool: {"status": "ok"}), answer(200, {"status": "ok"})),
    }


def answer(status: int, data: Any, **headers: str) -> Answer:
    return Answer(status, headers, json.dumps(data).encode())


def test_right_answers_pass(pool: Pool) -> None:
    for expected, given in right_answers(pool).values():
        expected.check(given, pool)


@pytest.mark.parametrize(
    ("form", "old", "new", "what"),
    [
        ("one", b'"tokens": 4', b'"tokens": 5', "wrong field"),
        ("one", b'"latency": 0.01', b'"latency": -1', "wrong form"),
        ("one", b'"truncated"', b'"cut"', "wrong field"),
        ("one", b'"embedding": [', b'"embedding": [0.5, ', "wrong form"),
        ("one", b'"embedding": [', b'"embedding": ["x", ', "wrong form"),
        ("several", b'"count": 2', b'"count": 3', "wrong field"),
        ("several", b"}", b"", "not JSON"),
        ("openai", b'"index": 1', b'"index": 2', "wrong form"),
        ("openai", b'"object": "list"', b'"object": "lists"', "wrong field"),
        ("openai", b'"embedding": "', b'"embedding": "AAAA', "wrong form"),
        ("inputs", b"[[", b'{"embeddings": [[', "not JSON"),
        ("404", b"unknown_route", b"invalid_request", "wrong code"),
        ("404", b"request-9", b"request-8", "another's answer"),
        ("404", b'"param": null, ', b"", "wrong form"),
        ("404", b'"request_id": "a"', b'"request_id": "b"', "wrong field"),
        ("404", b'"error"', b'"fault"', "wrong form"),
        ("413", b"smaller", b"larger", "wrong form"),
        ("health", b"ok", b"starting", "wrong field"),
    ],
)
def test_wrong_answers_are_told_apart(pool: Pool, form: str, old: bytes, new: bytes, what: str) -> None:
    expected, given = right_answers(pool)[form]
    assert old in given.body
    with pytest.raises(WrongAnswerError) as caught:
        expected.check(given._replace(body=given.body.replace(old, new, 1)), pool)
    assert caught.value.what == what


def test_vectors_of_other_texts_are_wrong(pool: Pool) -> None:
    for form in ("several", "openai", "inputs"):
        expected, given = right_answers(pool)[form]
        assert isinstance(expected, Vectors)
        other = Vectors(expected.field, [2, 5], expected.encoding)
        with pytest.raises(WrongAnswerError, match="1 of 2, the first for text 0") as caught:
            other.check(given, pool)
        assert caught.value.what == "wrong vector"


def test_a_last_bit_is_enough(pool: Pool) -> None:
    vectors = pool.unit[ROWS].copy()
    vectors[1, 7] = np.nextafter(vectors[1, 7], np.float32(9))
    with pytest.raises(WrongAnswerError, match="1 of 2, the first for text 1") as caught:
        Vectors("inputs", ROWS).check(answer(200, vectors.tolist(), **{"x-truncated-texts": "1"}), pool)
    assert caught.value.what == "wrong vector"


def test_a_zero_of_the_other_sign_is_another_vector(pool: Pool) -> None:
    zeros = Pool(np.zeros_like(pool.unit), pool.raw, pool.tokens, frozenset(), "org/name", VERSION)
    Vectors("inputs", [1]).check(answer(200, [[0.0] * 384]), zeros)
    with pytest.raises(WrongAnswerError, match="1 of 1"):
        Vectors("inputs", [1]).check(answer(200, [[0.0] * 383 + [-0.0]]), zeros)


@pytest.mark.parametrize(
    ("form", "status", "headers", "what"),
    [
        ("one", 500, None, "wrong status"),
        ("404", 400, None, "wrong status"),
        ("several", 200, {}, "wrong header"),
        ("405", 405, {"x-request-id": "a"}, "wrong header"),
    ],
)
def test_status_and_headers_count(
    pool: Pool, form: str, status: int, headers: dict[str, str] | None, what: str
) -> None:
    expected, given = right_answers(pool)[form]
    changed = given._replace(status=status, headers=given.headers if headers is None else headers)
    with pytest.raises(WrongAnswerError) as caught:
        expected.check(changed, pool)
    assert caught.value.what == what


def test_percentiles_of_a_histogram_are_within_a_percent() -> None:
    milliseconds = np.random.default_rng(0).lognormal(3, 2, 50_000)
    counts = load.histogram(milliseconds)
    halves = [load.histogram(half) for half in (milliseconds[:20_000], milliseconds[20_000:])]
    assert load.merged(halves) == counts
    assert list(counts) == sorted(counts, key=float)
    for share in load.SHARES.values():
        exact = np.quantile(milliseconds, share, method="inverted_cdf")
        assert load.percentile(counts, share) == pytest.approx(exact, rel=0.0101)


def test_quarters_are_medians() -> None:
    assert load.quarters([9, 1, 2, 3, 5, 6, 7, 8]) == (5, 7.5)
    assert load.quarters([4]) == (4, 4)
    assert all(np.isnan(load.quarters([])))
