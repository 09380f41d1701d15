"""python -m local: a real runtime client behind real HTTP, on good days and on bad ones."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from handler.embedder import Embedder
from tests.support.servers import ROOT, Local

LIMIT = 6 * 1024 * 1024


@pytest.fixture
def functions(start: Callable[..., Local]) -> Local:
    return start("tests.programs.functions.handler", "--timeout", "5")


@pytest.mark.parametrize("payload_format", ["2.0", "1.0"])
def test_embeds_over_http(start: Callable[..., Local], payload_format: str, int8: Embedder) -> None:
    local = start("--payload-format", payload_format)
    answer = local.send("/embed", b'{"text": "vitamin d"}')
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    np.testing.assert_array_equal(np.float32(answer.json()["embedding"]), int8.embed(["vitamin d"]).vectors[0])
    answer = local.send("/embed", '{"texts": ["größe", "🙂"]}'.encode(), content_type="application/json")
    np.testing.assert_array_equal(np.float32(answer.json()["embeddings"]), int8.embed(["größe", "🙂"]).vectors)
    assert local.send("/embed", b"{}").status == 400
    assert local.send("/other", b"{}").status == 404
    answer = local.send("/embed")
    assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")


def test_the_printed_curl_line_works(start: Callable[..., Local]) -> None:
    local = start()
    command = next(line for line in local.log if line.startswith("ready: ")).removeprefix("ready: ")
    ran = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
    vector = np.array(json.loads(ran.stdout)["embedding"])
    assert vector.shape == (384,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-6


def test_missing_model_is_answered_over_http(start: Callable[..., Local], tmp_path: Path) -> None:
    local = start(MODEL_CACHE_DIR=str(tmp_path))
    answer = local.send("/embed", b'{"text": "vitamin d"}')
    assert answer.status == 503
    assert str(tmp_path) in answer.json()["error"]["message"]
    local.wait_for_log("model not loaded: no model in")


def test_event_of_a_function_url(functions: Local) -> None:
    event = functions.send("/echo/a%20b?x=1&x=2&y=", b"{}", content_type="application/json", Cookie="k=v; l=w").json()
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/echo/a b", "x=1&x=2&y=")
    assert event["queryStringParameters"] == {"x": "1,2", "y": ""}
    assert event["cookies"] == ["k=v", "l=w"]
    assert event["headers"]["content-type"] == "application/json"
    assert "cookie" not in event["headers"]
    assert event["requestContext"]["http"]["method"] == "POST"
    assert event["requestContext"]["http"]["sourceIp"] == "127.0.0.1"
    assert (event["body"], event["isBase64Encoded"]) == ("{}", False)
    assert "body" not in functions.send("/echo").json()


def test_event_of_a_rest_api(start: Callable[..., Local]) -> None:
    local = start("tests.programs.functions.handler", "--payload-format", "1.0")
    event = local.send("/echo?x=1&x=2", b"{}", content_type="application/json").json()
    assert (event["httpMethod"], event["path"], event["body"]) == ("POST", "/echo", "{}")
    assert event["multiValueQueryStringParameters"] == {"x": ["1", "2"]}
    assert local.send("/echo").json()["body"] is None
    answer = local.send("/plain")
    assert (answer.status, answer.json()) == (502, {"message": "Internal server error"})
    assert local.send("/raise").status == 502


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/octet-stream", "image/png"])
def test_other_bodies_travel_as_base64(functions: Local, content_type: str) -> None:
    event = functions.send("/echo", b"\x00\xff", content_type=content_type).json()
    assert event["isBase64Encoded"] is True
    assert base64.b64decode(event["body"]) == b"\x00\xff"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/octet-stream"])
def test_a_function_url_hands_packed_bodies_over_as_they_are(functions: Local, content_type: str) -> None:
    packed = gzip.compress(b"{}")
    event = functions.send("/echo", packed, content_type=content_type, content_encoding="gzip").json()
    assert event["isBase64Encoded"] is True
    assert base64.b64decode(event["body"]) == packed
    assert event["headers"]["content-encoding"] == "gzip"
    assert ".lambda-url." in event["requestContext"]["domainName"]


def test_a_rest_api_unpacks_and_takes_every_body_for_text(start: Callable[..., Local]) -> None:
    local = start("tests.programs.functions.handler", "--payload-format", "1.0")
    for coding, packed in (("gzip", gzip.compress(b"{}")), ("deflate", zlib.compress(b"{}")), ("identity", b"{}")):
        event = local.send("/echo", packed, content_type="application/json", content_encoding=coding).json()
        assert (event["body"], event["isBase64Encoded"]) == ("{}", False)
    event = local.send("/echo", b"\x00\xff", content_type="application/octet-stream").json()
    assert (event["body"], event["isBase64Encoded"]) == ("\x00\ufffd", False)
    for coding, packed in (("br", b"{}"), ("gzip", b"{}")):
        answer = local.send("/echo", packed, content_encoding=coding)
        assert (answer.status, answer.json()) == (415, {"message": "Unsupported Media Type"})


@pytest.mark.parametrize("payload_format", ["2.0", "1.0"])
def test_embeds_packed_bodies(start: Callable[..., Local], payload_format: str, int8: Embedder) -> None:
    local = start("--payload-format", payload_format)
    packed = gzip.compress('{"text": "größe"}'.encode())
    answer = local.send("/embed", packed, content_type="application/json", content_encoding="gzip")
    np.testing.assert_array_equal(np.float32(answer.json()["embedding"]), int8.embed(["größe"]).vectors[0])
    assert local.send("/embed", packed, content_encoding="br").status == 415


def test_results_become_responses(functions: Local) -> None:
    answer = functions.send("/plain")
    assert (answer.status, answer.json()) == (200, {"any": ["object"]})
    assert (functions.send("/no-body").status, functions.send("/no-body").body) == (204, b"")
    answer = functions.send("/binary")
    assert (answer.body, answer.headers["x-a"]) == (b"\x00\xff", "b")
    assert "b=2" in functions.send("/cookies").headers["set-cookie"]
    assert functions.send("/malformed").status == 502


def test_the_function_sees_what_lambda_sets(functions: Local) -> None:
    environment = functions.send("/environment").json()
    assert environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "1769"
    assert environment["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.13"
    assert environment["_HANDLER"] == "tests.programs.functions.handler"
    assert 0 < int(functions.send("/remaining").body) <= 5000


def test_the_function_runs_on_the_python_that_is_named(start: Callable[..., Local], tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nNAMED=yes exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    named = start("tests.programs.functions.handler", "--python", os.path.relpath(python, ROOT))
    assert named.send("/environment").json()["NAMED"] == "yes"


def test_a_python_that_is_missing_is_named() -> None:
    command = [sys.executable, "-m", "local", "--python", "absent"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (
        2,
        "python -m local: error: argument --python: there is no program absent",
    )


def test_an_exception_is_a_502_and_the_process_stays(functions: Local) -> None:
    pid = functions.send("/pid").body
    answer = functions.send("/raise")
    assert (answer.status, answer.body) == (502, b"Internal Server Error")
    functions.wait_for_log("ZeroDivisionError")
    assert functions.send("/pid").body == pid


@pytest.mark.parametrize("death", ["/exit/0", "/exit/3", f"/kill/{signal.SIGKILL}", f"/kill/{signal.SIGSEGV}"])
def test_a_crash_is_a_502_and_survived(functions: Local, death: str) -> None:
    pid = functions.send("/pid").body
    answer = functions.send(death)
    assert (answer.status, answer.body) == (502, b"Internal Server Error")
    functions.wait_for_log("Runtime.ExitError: the function's process ended")
    answer = functions.send("/pid")
    assert answer.status == 200
    assert answer.body != pid


def test_a_crash_between_requests_is_survived(functions: Local) -> None:
    for _ in range(10):  # what asks at once may be faster than the news of the crash
        pid = int(functions.send("/pid").body)
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            pass
        answer = functions.send("/pid")
        assert answer.status == 200
        assert int(answer.body) != pid


def test_a_timeout_is_a_502_and_the_process_is_killed(start: Callable[..., Local]) -> None:
    local = start("tests.programs.functions.handler", "--timeout", "1")
    pid = int(local.send("/pid").body)
    answer = local.send("/sleep/30")
    assert (answer.status, answer.body) == (502, b"Internal Server Error")
    local.wait_for_log("Task timed out")
    assert not Path(f"/proc/{pid}").exists()
    assert int(local.send("/pid").body) != pid


@pytest.mark.parametrize("trouble", ["/exit/1", "/sleep/30"])
def test_requests_during_a_restart_are_answered(start: Callable[..., Local], trouble: str) -> None:
    local = start("tests.programs.functions.handler", "--timeout", "1")
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(local.send, trouble)
        time.sleep(0.2)
        others = [pool.submit(local.send, "/pid") for _ in range(8)]
        assert first.result().status == 502
        assert [other.result().status for other in others] == [200] * 8
        assert len({other.result().body for other in others}) == 1


def test_failed_init_is_shown_answered_and_tried_again(start: Callable[..., Local], tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    local = start("tests.programs.broken_function.handler", READY=str(ready))
    local.wait_for_log("INIT failed: RuntimeError: the disk is not mounted yet")
    answer = local.send("/")
    assert (answer.status, answer.body) == (502, b"Internal Server Error")
    ready.touch()
    assert local.send("/").body == b"ready"


def test_a_handler_that_does_not_exist_is_shown(start: Callable[..., Local]) -> None:
    local = start("no.such.handler")
    local.wait_for_log("INIT failed: Runtime.ImportModuleError")
    assert local.send("/").status == 502


def test_requests_over_6_mb_are_413(functions: Local, start: Callable[..., Local]) -> None:
    assert functions.send("/pid", b"x" * (LIMIT - 10_000), content_type="text/plain").status == 200
    answer = functions.send("/pid", b"x" * LIMIT, content_type="text/plain")
    assert answer.status == 413
    assert f"smaller than {LIMIT} bytes" in answer.json()["Message"]
    assert functions.send("/pid", b"x" * (LIMIT + 1), content_type="text/plain").status == 413
    # Base64 takes a third more.
    assert functions.send("/pid", b"x" * (LIMIT * 4 // 5), content_type="image/png").status == 413
    rest = start("tests.programs.functions.handler", "--payload-format", "1.0")
    answer = rest.send("/pid", b"x" * (LIMIT + 1))
    assert (answer.status, answer.json()) == (413, {"message": "Request Too Long"})


def test_responses_over_6_mb_are_502(functions: Local) -> None:
    assert len(functions.send(f"/big/{LIMIT - 1000}").body) == LIMIT - 1000
    assert functions.send(f"/big/{LIMIT}").status == 502
    functions.wait_for_log("Function.ResponseSizeTooLarge")
    assert functions.send("/pid").status == 200


def test_a_port_in_use_is_named(functions: Local) -> None:
    port = functions.url.rpartition(":")[2]
    command = [sys.executable, "-m", "local", "tests.programs.functions.handler", "--port", port]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert f"local: cannot listen on 127.0.0.1:{port}" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_child_ends_with_its_parent(start: Callable[..., Local]) -> None:
    local = start("tests.programs.functions.handler")
    pid = int(local.send("/pid").body)
    local.process.send_signal(signal.SIGINT)
    assert local.process.wait(timeout=20) == 0
    assert not Path(f"/proc/{pid}").exists()
