"""The log: one JSON line a request, without what the texts say, that CloudWatch reads metrics from."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.instructions import OF_THIS_CPU
from tests.support.events import LoadApp
from tests.support.servers import ROOT, Answer, Local, lines_of

Start = Callable[..., Local]
MARK = "Xylophon"
"""Stands in every place where a request can have text of its own."""

REQUESTS: list[tuple[str, str, Any, int]] = [
    ("POST", "/embed", {"text": MARK}, 200),
    ("POST", "/embed", {"texts": [MARK, "größe \U0001f600\u2028\n"], "encoding_format": "base64"}, 200),
    ("POST", "/", {"inputs": [MARK]}, 200),
    ("POST", "/v1/embeddings", {"input": MARK, "model": "all-MiniLM-L6-v2", "user": MARK}, 200),
    ("POST", "/embed", {"text": f"{MARK} \ud83d"}, 200),
    ("POST", "/embed", {"text": f"{MARK} " * 300}, 200),
    ("POST", "/embed", {"text": f"{MARK} " * 300, "truncate": False}, 400),
    ("POST", "/embed", {"text": 5, MARK: MARK}, 400),
    ("POST", "/embed", {"text": [MARK]}, 400),
    ("POST", "/embed", {"text": "a", "encoding_format": MARK}, 400),
    ("POST", "/embed", {"text": "a", f"{MARK}\ud83d": 1}, 200),
    ("POST", "/embed", [MARK], 400),
    ("POST", "/embed", None, 400),
    ("POST", "/embed", {"texts": [MARK] * 2000}, 413),
    ("POST", "/v1/embeddings", {"input": MARK, "model": MARK}, 404),
    ("POST", "/v1/embeddings", {"input": [[1, 2, 3]], "model": "all-MiniLM-L6-v2"}, 400),
    ("GET", f"/v1/models/{MARK}", None, 404),
    ("GET", f"/{MARK}", None, 404),
    ("GET", f"/health?{MARK}={MARK}", None, 200),
    ("GET", "/info", None, 200),
    ("GET", "/v1/models", None, 200),
    ("GET", "/docs", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("HEAD", "/health", None, 200),
    ("PUT", "/embed", {"text": MARK}, 405),
    ("OPTIONS", "/embed", None, 204),
]

LEVELS = {2: "INFO", 4: "WARN", 5: "ERROR"}


def check_metrics(line: dict[str, Any]) -> list[str]:
    """Check a line as CloudWatch's "Specification: Embedded metric format" has it. The names of its metrics."""
    assert set(line["_aws"]) == {"Timestamp", "CloudWatchMetrics"}
    stamp = line["_aws"]["Timestamp"]
    assert type(stamp) is int
    assert abs(stamp / 1000 - time.time()) < 3600  # milliseconds, not seconds
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert set(directive) == {"Namespace", "Dimensions", "Metrics"}
    assert 0 < len(directive["Namespace"]) <= 255
    assert directive["Dimensions"]
    for dimensions in directive["Dimensions"]:
        assert len(dimensions) <= 30
        assert all(isinstance(line[name], str) and 0 < len(line[name]) <= 1024 for name in dimensions)
    names = [metric["Name"] for metric in directive["Metrics"]]
    assert 0 < len(names) == len(set(names)) <= 100
    for metric in directive["Metrics"]:
        assert set(metric) == {"Name", "Unit"}
        assert metric["Unit"] in ("Milliseconds", "Count")
        assert type(line[metric["Name"]]) in (int, float)
    return names


def send(local: Local, method: str, path: str, content: Any) -> Answer:
    body = None if content is None else json.dumps(content).encode()
    return local.send(path, body, method, content_type="application/json")


def test_every_request_has_one_line_under_its_own_id(start: Start) -> None:
    local = start()
    ids = []
    for method, path, content, status in REQUESTS:
        answer = send(local, method, path, content)
        assert answer.status == status, (method, path, answer.body[:300])
        ids.append(answer.headers["x-request-id"])
        (line,) = lines_of(local, 1, ids[-1])
        assert (line["request_id"], line["status"]) == (ids[-1], status)
        assert line["level"] == LEVELS[status // 100]
        assert ("client_errors" in line) == ("error" in line) == (status >= 400)
        if "error" in line:
            assert line["error"]["code"] == answer.json()["error"]["code"]
        assert 0 < line["latency_ms"] < 60_000
        assert sum(line["phases_ms"].values()) <= line["latency_ms"] + 0.01
        check_metrics(line)
    assert len(set(ids)) == len(REQUESTS)
    assert [line["request_id"] for line in lines_of(local, len(REQUESTS))] == ids


def test_the_log_has_no_word_of_a_request(start: Start) -> None:
    local = start()
    for method, path, content, _ in REQUESTS:
        send(local, method, path, content)
    lines_of(local, len(REQUESTS))
    assert not [line for line in local.log if MARK in line]


@pytest.mark.parametrize("value", ["true", "TRUE"])
def test_texts_are_logged_on_request_and_cut(start: Start, value: str) -> None:
    local = start(LOG_TEXTS=value)
    texts = [MARK, 'größe \U0001f600\u2028\n"', "long " * 300]
    send(local, "POST", "/embed", {"texts": texts})
    send(local, "POST", "/embed", {"text": f"{MARK} \ud83d"})
    send(local, "POST", "/embed", {"text": "a", "encoding_format": f"{MARK}\ud83d"})
    several, surrogate, wrong = lines_of(local, 3)
    assert several["content"] == [text[:200] for text in texts]
    assert surrogate["content"] == [f"{MARK} \ud83d"]
    assert MARK in wrong["error"]["message"]
    for line in (several, surrogate, wrong):
        check_metrics(line)


@pytest.mark.parametrize("value", ["", "false", "1", "yes"])
def test_texts_are_logged_for_no_other_value(load_app: LoadApp, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    load_app(LOG_TEXTS=value).lambda_handler({"text": MARK}, None)
    assert MARK not in capsys.readouterr().out


def line_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_the_line_tells_what_was_asked(load_app: LoadApp, capsys: pytest.CaptureFixture[str]) -> None:
    app = load_app(AWS_LAMBDA_FUNCTION_NAME="embeddings")
    app.lambda_handler({"texts": ["vitamin d", "word " * 300]}, None)
    line = line_of(capsys)
    assert (line["route"], line["function"], line["texts"], line["tokens"]) == ("invoke", "embeddings", 2, 4 + 256)
    assert line["truncated"] == 1
    assert set(line["phases_ms"]) == {"parse", "load", "tokenize", "run", "write"}
    assert {"latency_ms", "texts", "tokens", "truncated", "cold_starts", "load_ms"} == set(check_metrics(line))


def test_a_cold_start_is_told_once(load_app: LoadApp, capsys: pytest.CaptureFixture[str]) -> None:
    app = load_app()
    colds = []
    for _ in range(3):
        app.lambda_handler({"text": "a"}, None)
        line = line_of(capsys)
        colds.append(line["cold_start"])
        assert ("load_ms" in line) == ("cold_starts" in line) == ("instructions" in line) == line["cold_start"]
        assert line.get("instructions", OF_THIS_CPU[0]) == OF_THIS_CPU[0]
    assert colds == [True, False, False]


def test_a_direct_invocation_that_fails_has_a_line(load_app: LoadApp, capsys: pytest.CaptureFixture[str]) -> None:
    app = load_app()
    assert app.lambda_handler({"text": 5}, None)["error"]["code"] == "invalid_request"
    line = line_of(capsys)
    assert (line["route"], line["level"], line["client_errors"]) == ("invoke", "WARN", 1)
    assert line["error"] == {"type": "InvalidRequestError", "code": "invalid_request"}
    check_metrics(line)


def test_metrics_have_a_namespace_or_are_left_out(load_app: LoadApp, capsys: pytest.CaptureFixture[str]) -> None:
    load_app(METRICS_NAMESPACE="Search/Production").lambda_handler({"text": "a"}, None)
    line = line_of(capsys)
    check_metrics(line)
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Search/Production"
    load_app(METRICS_NAMESPACE="").lambda_handler({"text": "a"}, None)
    line = line_of(capsys)
    assert "_aws" not in line
    assert line["texts"] == 1


def test_a_fault_of_ours_is_told_in_full_and_not_to_the_client(start: Start, tmp_path: Path) -> None:
    local = start(MODEL_CACHE_DIR=str(tmp_path))
    answer = send(local, "POST", "/embed", {"text": MARK})
    assert answer.status == 503
    (line,) = lines_of(local, 1, answer.headers["x-request-id"])
    assert (line["level"], line["server_errors"], line["cold_start"]) == ("ERROR", 1, False)
    assert line["version"] == "$LATEST"
    assert str(tmp_path) in line["error"]["message"]
    assert "server_errors" in check_metrics(line)
    assert not [line for line in local.log if MARK in line]


def test_an_unforeseen_error_is_in_the_log_with_its_traceback(
    load_app: LoadApp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = load_app()
    monkeypatch.setattr(app.service.loaded_embedder(), "_session", None)
    context = {"http": {"method": "POST"}, "requestId": "one"}
    event = {"rawPath": "/embed", "requestContext": context, "body": json.dumps({"text": MARK})}
    answer = app.lambda_handler(event, None)
    error = json.loads(answer["body"])["error"]
    assert (answer["statusCode"], error["code"]) == (500, "internal_error")
    assert "NoneType" not in error["message"]
    out = capsys.readouterr().out
    incident, line = map(json.loads, out.splitlines())
    assert (incident["request_id"], incident["incident"]) == ("one", "AttributeError")
    assert "NoneType" in incident["traceback"]
    assert "in infer" in incident["traceback"]
    assert (line["request_id"], line["status"], line["error"]["code"]) == ("one", 500, "internal_error")
    assert MARK not in out


def test_an_answer_does_not_depend_on_the_log(start: Start) -> None:
    local = start("tests.programs.full_log.lambda_handler")
    assert local.send("/health").status == 200


@pytest.mark.parametrize("metrics", ["", "LambdaEmbeddings"])
def test_a_line_is_as_long_as_the_documents_say(start: Start, metrics: str) -> None:
    """What CloudWatch charges for, to a tenth."""
    text = " ".join((ROOT / "docs" / "api.md").read_text("utf-8").split())
    found = re.search(r"about (\d+) bytes per request or (\d+) with metrics", text)
    assert found
    local = start(METRICS_NAMESPACE=metrics)
    send(local, "POST", "/embed", {"text": "vitamin d"})  # whose line also tells of the cold start
    answer = send(local, "POST", "/embed", {"text": "vitamin d"})
    lines_of(local, 1, answer.headers["x-request-id"])
    (line,) = (each for each in local.log if each.startswith("{") and answer.headers["x-request-id"] in each)
    assert len(line.encode()) == pytest.approx(int(found[2 if metrics else 1]), rel=0.1)
