"""python -m local --invoke-port: Lambda's Invoke API, with handlers that do well and badly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from handler.embedder import Embedder
from tests.support.servers import ROOT, Answer, Local, send

LIMIT = 6 * 1024 * 1024
EVENT_LIMIT = 1024 * 1024
ARN = "arn:aws:lambda:us-east-1:000000000000:function:local"
REPORT = {"errorMessage", "errorType", "requestId", "stackTrace"}

Start = Callable[..., Local]


@pytest.fixture
def functions(start: Start) -> Local:
    return start("tests.programs.functions.handler", "--timeout", "1", "--invoke-port", "0")


def invoke(local: Local, event: Any, name: str = "local", query: str = "", **headers: str) -> Answer:
    """Invoke a function with an event, which is sent as it is if it is bytes."""
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    url = f"{local.invoke_url}/2015-03-31/functions/{quote(name, safe='')}/invocations{query}"
    return send(url, body, "POST", **headers)


def assert_refused(answer: Answer, status: int, kind: str, message: str) -> None:
    assert (answer.status, answer.headers["x-amzn-errortype"]) == (status, kind)
    assert answer.json()["Type"] == "User"
    assert message in answer.json()["Message"]
    assert answer.headers["x-amzn-requestid"]
    assert "x-amz-function-error" not in answer.headers


def test_embeds_like_a_deployed_function(start: Start, int8: Embedder) -> None:
    local = start("--invoke-port", "0")
    assert local.invoke_url != local.url
    answer = invoke(local, {"texts": ["größe", "🙂"]})
    assert (answer.status, answer.headers["x-amz-executed-version"]) == (200, "$LATEST")
    np.testing.assert_array_equal(np.float32(answer.json()["embeddings"]), int8.embed(["größe", "🙂"]).vectors)
    answer = invoke(local, {"text": 1})
    assert (answer.status, answer.json()["error"]["status"]) == (200, 400)
    assert "x-amz-function-error" not in answer.headers


def test_is_off_by_default(start: Start) -> None:
    local = start("tests.programs.functions.handler")
    assert local.invoke_url == ""
    # The Function URL passes such a request on, as it does any other.
    event = local.send("/echo/2015-03-31/functions/local/invocations", b"{}").json()
    assert event["rawPath"] == "/echo/2015-03-31/functions/local/invocations"


def test_the_result_is_the_payload_and_the_request_is_logged_by_its_id(functions: Local) -> None:
    answer = invoke(functions, {"path": "/plain"})
    assert (answer.status, answer.json()) == (200, {"any": ["object"]})
    assert answer.headers["x-amz-executed-version"] == "$LATEST"
    assert "x-amz-function-error" not in answer.headers
    functions.wait_for_log(f"START RequestId: {answer.headers['x-amzn-requestid']}")


def test_the_event_arrives_unchanged(functions: Local) -> None:
    event = {"path": "/echo", "größe": [1, 2.5, None, True, "🙂", "\ud800"]}
    assert json.loads(invoke(functions, event).json()["body"]) == event


@pytest.mark.parametrize("name", ["local", ARN, "000000000000:function:local", "local:$LATEST", f"{ARN}:$LATEST"])
def test_every_form_of_the_name_is_understood(functions: Local, name: str) -> None:
    assert invoke(functions, {"path": "/plain"}, name).status == 200
    assert invoke(functions, {"path": "/plain"}, name, query="?Qualifier=%24LATEST").status == 200


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("other", ""),
        (f"{ARN}s", ""),
        ("local:1", ""),
        ("local", "?Qualifier=production"),
        ("arn:aws:lambda:us-east-1:000000000001:function:local", ""),
    ],
)
def test_another_function_is_not_found(functions: Local, name: str, query: str) -> None:
    answer = invoke(functions, {"path": "/plain"}, name, query)
    assert_refused(answer, 404, "ResourceNotFoundException", f"Function not found: '{name}'")


def test_an_exception_is_reported_and_the_process_stays(functions: Local) -> None:
    pid = invoke(functions, {"path": "/pid"}).json()["body"]
    answer = invoke(functions, {"path": "/raise"})
    assert (answer.status, answer.headers["x-amz-function-error"]) == (200, "Unhandled")
    assert answer.headers["x-amz-executed-version"] == "$LATEST"
    report = answer.json()
    assert report.keys() == REPORT
    assert (report["errorType"], report["errorMessage"]) == (
        "ZeroDivisionError",
        "integer division or modulo by zero",
    )
    assert report["requestId"] == answer.headers["x-amzn-requestid"]
    assert "in handler" in "".join(report["stackTrace"])
    assert invoke(functions, {"path": "/pid"}).json()["body"] == pid


def test_nothing_sent_is_an_empty_event(functions: Local) -> None:
    report = invoke(functions, b"").json()
    assert (report["errorType"], report["errorMessage"]) == ("KeyError", "'path'")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/sleep/30", "Sandbox.Timedout", "Task timed out after 1.00 seconds"),
        ("/exit/3", "Runtime.ExitError", "the function's process ended: exit status 3"),
        ("/kill/9", "Runtime.ExitError", "the function's process ended: signal SIGKILL"),
        (f"/big/{LIMIT}", "Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed"),
    ],
)
def test_what_ends_the_process_is_reported_as_lambda_does(functions: Local, path: str, kind: str, message: str) -> None:
    answer = invoke(functions, {"path": path})
    assert (answer.status, answer.headers["x-amz-function-error"]) == (200, "Unhandled")
    report = answer.json()
    assert report["errorType"] == kind
    assert report["errorMessage"].startswith(f"RequestId: {answer.headers['x-amzn-requestid']} Error: {message}")
    assert invoke(functions, {"path": "/pid"}).json()["statusCode"] == 200


def test_a_failed_init_is_reported(start: Start, tmp_path: Any) -> None:
    local = start("tests.programs.broken_function.handler", "--invoke-port", "0", READY=str(tmp_path / "ready"))
    answer = invoke(local, {})
    assert (answer.status, answer.headers["x-amz-function-error"]) == (200, "Unhandled")
    assert answer.json()["errorType"] == "RuntimeError"
    assert answer.json()["errorMessage"] == "the disk is not mounted yet"


def test_payloads_over_6_mb_are_413(functions: Local) -> None:
    padding = LIMIT - len(json.dumps({"path": "/pid", "x": ""}))
    assert invoke(functions, {"path": "/pid", "x": "x" * padding}).status == 200
    answer = invoke(functions, {"path": "/pid", "x": "x" * (padding + 1)})
    assert_refused(answer, 413, "RequestTooLargeException", f"must be smaller than {LIMIT} bytes")


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"{} {}", b"[" * 100_000])
def test_payloads_that_are_no_json_are_refused(functions: Local, payload: bytes) -> None:
    answer = invoke(functions, payload)
    assert_refused(answer, 400, "InvalidRequestContentException", "Could not parse request body into json")


def test_an_event_is_queued_and_attempted_once(functions: Local) -> None:
    started = time.monotonic()
    slow = invoke(functions, {"path": "/sleep/0.5"}, x_amz_invocation_type="Event")
    bad = invoke(functions, {"path": "/raise"}, x_amz_invocation_type="Event")
    assert time.monotonic() - started < 0.4
    for answer in (slow, bad):
        assert (answer.status, answer.body) == (202, b"")
        functions.wait_for_log(f"REPORT RequestId: {answer.headers['x-amzn-requestid']}")
    functions.wait_for_log(f"{bad.headers['x-amzn-requestid']} ZeroDivisionError")
    assert invoke(functions, {"path": "/plain"}).status == 200
    assert sum(line.startswith("START ") for line in functions.log) == 3


def test_events_over_1_mb_are_413(functions: Local) -> None:
    answer = invoke(functions, {"path": "/pid", "x": "x" * EVENT_LIMIT}, x_amz_invocation_type="Event")
    assert_refused(answer, 413, "RequestTooLargeException", f"must be smaller than {EVENT_LIMIT} bytes")


def test_events_in_the_queue_do_not_hold_up_the_end(functions: Local) -> None:
    for _ in range(3):
        assert invoke(functions, {"path": "/sleep/0.9"}, x_amz_invocation_type="Event").status == 202
    started = time.monotonic()
    functions.process.terminate()
    assert functions.process.wait(timeout=20) == 0
    assert time.monotonic() - started < 5


def test_a_dry_run_runs_nothing(functions: Local) -> None:
    answer = invoke(functions, {"path": "/raise"}, x_amz_invocation_type="DryRun")
    assert (answer.status, answer.body) == (204, b"")
    assert invoke(functions, {}, "other", x_amz_invocation_type="DryRun").status == 404
    assert not any(line.startswith("START ") for line in functions.log)


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("x_amz_invocation_type", "Stream", "InvocationType is 'Stream': send RequestResponse, Event or DryRun"),
        ("x_amz_log_type", "Tail", "x-amz-log-type 'Tail' is not served here: the log is on the standard error"),
        ("x_amz_client_context", "e30=", "x-amz-client-context 'e30=' is not served here: put what"),
    ],
)
def test_what_is_not_served_is_refused(functions: Local, header: str, value: str, message: str) -> None:
    answer = invoke(functions, {"path": "/plain"}, **{header: value})
    assert_refused(answer, 400, "InvalidParameterValueException", message)


def test_no_log_is_the_default_of_sdks(functions: Local) -> None:
    assert invoke(functions, {"path": "/plain"}, x_amz_log_type="None").status == 200


def test_other_operations_are_refused(functions: Local) -> None:
    url = functions.invoke_url
    answer = send(f"{url}/2021-11-15/functions/local/response-streaming-invocations", b"{}")
    assert_refused(answer, 404, "UnknownOperationException", "only POST /2015-03-31/functions/{name}/invocations")
    answer = send(f"{url}/2015-03-31/functions/local/invocations")
    assert_refused(answer, 405, "UnknownOperationException", "Invoke does not answer GET: send POST")


def test_a_port_in_use_is_named(functions: Local) -> None:
    port = functions.invoke_url.rpartition(":")[2]
    command = [sys.executable, "-m", "local", "tests.programs.functions.handler", "--port", "0", "--invoke-port", port]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert f"local: cannot listen on 127.0.0.1:{port}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_url_is_printed_before_the_function_is_ready(functions: Local) -> None:
    invoke_line, ready_line = (line for line in functions.log if line.startswith(("invoke: ", "ready: ")))
    assert re.fullmatch(r"invoke: http://127\.0\.0\.1:\d+\n", invoke_line)
    assert ready_line.startswith("ready: ")
