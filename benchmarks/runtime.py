"""A Lambda Runtime API that hands out one invocation, to time the real runtime client up to its first answer."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from deploy import DeployError
from deploy.package import LAMBDA_PYTHON, ROOT, interpreter


class Started(NamedTuple):
    """A function's start, in seconds since its process was."""

    ready: float
    """It asked for the first invocation: init is over."""
    answered: float
    """Its answer to that was whole."""
    answer: Any
    """The decoded answer."""
    peak_memory_mb: float


def start_function(
    folder: Path, event: object, environment: Mapping[str, str], python: str = sys.executable
) -> Started:
    """Run `handler.app.lambda_handler` of the package `folder` under `awslambdaric` until it has answered one event.

    `python` is the interpreter, which has `awslambdaric`.

    Paths and headers are those of the AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes".
    Raises RuntimeError if the process ends, or reports an error, before its answer.
    """
    found: dict[str, Any] = {}
    done = threading.Event()

    class RuntimeApi(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            found.setdefault("ready", time.perf_counter())
            if "answered" in found:
                done.wait()  # the next invocation never comes
                return
            headers = {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": "00000000-0000-0000-0000-000000000000",
                "Lambda-Runtime-Deadline-Ms": str(int(time.time() * 1000) + 30_000),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:embed",
                "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Sampled=0",
            }
            self._send(200, json.dumps(event).encode(), headers)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found["answered"] = time.perf_counter()
            found["answer" if self.path.endswith("/response") else "error"] = body
            found["peak"] = _peak_memory_mb(process.pid)
            self._send(202, b"", {})
            done.set()

        def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *arguments: object) -> None:
            """The client is killed while it waits; where that was too early, the answer is missing and said to be."""

    server = Server(("127.0.0.1", 0), RuntimeApi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {**environment, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}"}
    variables["LAMBDA_TASK_ROOT"] = str(folder)
    command = [python, "-m", "awslambdaric", "handler.app.lambda_handler"]
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            while not done.wait(0.2) and process.poll() is None:
                pass
        finally:
            done.set()
            process.kill()
            output = process.stdout.read() if process.stdout else b""
            server.shutdown()
            server.server_close()
    if "answer" not in found:
        raise RuntimeError(f"the function gave no answer: {found.get('error', output)[-500:]!r}")
    return Started(found["ready"] - began, found["answered"] - began, _result(found["answer"]), found["peak"])


def _result(answer: str | bytes) -> Any:
    """What the function returned. Raises RuntimeError if that is an error of the caller's."""
    result = json.loads(answer)
    if "error" in result:
        raise RuntimeError(f"the function refused the event: {result['error']}")
    return result


def lambda_python(folder: Path, *packages: str) -> str:
    """Path of a Python of Lambda's version with the runtime client, in a virtual environment that is made in `folder`.

    `packages` are further ones that it gets. Raises DeployError if this machine has no such Python, or pip cannot
    install them.
    """
    subprocess.run([interpreter(LAMBDA_PYTHON), "-m", "venv", str(folder)], check=True)  # noqa: S603
    python, installed = str(folder / "bin" / "python"), ["awslambdaric", *packages]
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--constraint", str(ROOT / "constraints.txt"), *installed]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if ran.returncode != 0:
        raise DeployError(f"pip cannot install {', '.join(installed)}: {ran.stderr.strip().splitlines()[-1]}")
    return python


def _peak_memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
