"""A running `python -m local` for tests, and how to ask it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "build" / "clients"
"""Where `make clients` installs them."""
MODEL_NAME = "all-MiniLM-L6-v2"


@dataclass
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def send(url: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
    """Send a request; `_` in the names of headers stands for `-`."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, method=method, headers=names)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, lower(response.headers), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, lower(error.headers), error.read())


@dataclass
class Local:
    """A running `python -m local`."""

    process: subprocess.Popen[str]
    url: str = ""
    invoke_url: str = ""
    """Of the Invoke API, where --invoke-port asks for it."""
    log: list[str] = field(default_factory=list)

    def send(self, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Answer:
        return send(self.url + path, body, method, **headers)

    def wait_for_log(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while not any(text in line for line in self.log):
            assert time.monotonic() < deadline, f"{text!r} is not in {self.log}"
            time.sleep(0.02)


@pytest.fixture
def start(model_cache: Path) -> Iterator[Callable[..., Local]]:
    """Start `python -m local` with some arguments; all of them end with the test."""
    running: list[Local] = []

    def start_one(*arguments: str, **variables: str) -> Local:
        environment = {**os.environ, "MODEL_CACHE_DIR": str(model_cache), **variables}
        process = subprocess.Popen(
            [sys.executable, "-m", "local", "--port", "0", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        local = Local(process)
        running.append(local)
        assert process.stdout is not None
        assert process.stderr is not None
        threading.Thread(target=collect, args=(process.stderr, local.log), daemon=True).start()
        for line in process.stdout:
            local.log.append(line)
            if line.startswith("invoke: "):
                local.invoke_url = line.removeprefix("invoke: ").strip()
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/embed", line):
                local.url = found.group(1)
                break
        assert local.url, f"local did not start: {local.log}"
        threading.Thread(target=collect, args=(process.stdout, local.log), daemon=True).start()
        return local

    yield start_one
    for local in running:
        with local.process as process:  # which closes its pipes even if it ended badly
            process.terminate()
            assert process.wait(timeout=20) == 0


class Handler(BaseHTTPRequestHandler):
    """Of a server of a test's own, which prints nothing."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        """Send an answer; what the connection and this server decide themselves is not taken from `headers`."""
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def serving(handler: type[Handler]) -> Iterator[str]:
    """The URL of a server that answers as the handler does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def collect(stream: IO[str], log: list[str]) -> None:
    try:
        log.extend(iter(stream.readline, ""))
    except ValueError:  # closed at the end of the test
        return


def lines_of(local: Local, count: int, request_id: str = "") -> list[dict[str, Any]]:
    """The JSON lines of the log that have a request's id: waits for `count` of them, and there must be no more."""
    deadline = time.monotonic() + 30
    while True:
        found = [json.loads(line) for line in local.log if line.startswith("{") and request_id in line]
        if len(found) >= count:
            assert len(found) == count, found
            return found
        assert time.monotonic() < deadline, local.log
        time.sleep(0.02)
