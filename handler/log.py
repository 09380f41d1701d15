"""One JSON line a request: for people, for CloudWatch Logs Insights, and, in the same line, CloudWatch metrics.

Metrics are in CloudWatch's embedded metric format (Amazon CloudWatch User Guide, "Specification: Embedded metric
format"): CloudWatch reads them from the log, so that nothing is sent from here.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import orjson

from handler.errors import status_of

METRICS = {
    "latency_ms": "Milliseconds",
    "texts": "Count",
    "tokens": "Count",
    "truncated": "Count",
    "client_errors": "Count",
    "server_errors": "Count",
    "cold_starts": "Count",
    "load_ms": "Milliseconds",
}
"""Fields of the line that are metrics too, and their units."""

TEXT_CHARACTERS = 200
"""Characters of a text that are logged, if texts are logged."""


class Record:
    """The log line of a request, filled in while it is answered."""

    def __init__(self, request_id: str, namespace: str, with_texts: bool) -> None:
        """`namespace` is CloudWatch's name for where the metrics go; empty for no metrics."""
        self.started = time.perf_counter()
        self.request_id = request_id
        self.route = ""
        self.texts: list[str] = []
        self.tokens = 0
        self.truncated = 0
        self.ignored: tuple[str, ...] = ()
        """Names of the request's fields that change nothing here."""
        self.warnings: tuple[str, ...] = ()
        """What the client should know of its vectors; not logged."""
        self.load_seconds: float | None = None
        """Seconds that loading the model took; None but in the first request after it."""
        self.instructions: str | None = None
        """Instruction set that the model's operators use; logged together with `load_seconds`."""
        self._namespace = namespace
        self._with_texts = with_texts
        self._phases: dict[str, float] = {}
        self._phase_began = self.started

    @property
    def seconds(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self.started

    def end_phase(self, name: str) -> None:
        """End a phase: the time since the last one ended, or since the start, is logged under this name."""
        now = time.perf_counter()
        self._phases[name] = self._phases.get(name, 0.0) + now - self._phase_began
        self._phase_began = now

    def write(self, status: int | None, error: BaseException | None = None) -> None:
        """Print the line. `status` is None for a direct invocation that succeeded."""
        server_error = error is not None and (status or 500) >= 500
        line: dict[str, Any] = {
            "level": "INFO" if error is None else "ERROR" if server_error else "WARN",
            "request_id": self.request_id,
            "route": self.route,
            "status": status,
            "latency_ms": round(self.seconds * 1000, 3),
            "texts": len(self.texts),
            "tokens": self.tokens,
            "cold_start": self.load_seconds is not None,
            "phases_ms": {name: round(seconds * 1000, 3) for name, seconds in self._phases.items()},
        }
        # Fields are left out where they have their usual value: CloudWatch charges for the log by its size.
        if self.truncated:
            line["truncated"] = self.truncated
        if self.ignored:
            line["ignored_fields"] = len(self.ignored)
        if self.load_seconds is not None:
            line |= {"cold_starts": 1, "load_ms": round(self.load_seconds * 1000, 3), "instructions": self.instructions}
        if error is not None:
            line["server_errors" if server_error else "client_errors"] = 1
            line["error"] = {"type": type(error).__name__, "code": status_of(error).code}
            # A client error's message can quote the request. A server error cannot be mended without its message.
            if server_error or self._with_texts:
                line["error"]["message"] = str(error)
            if server_error:  # a deployment watches the faults of its version alone
                line["version"] = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        if self._with_texts:
            line["content"] = [text[:TEXT_CHARACTERS] for text in self.texts]
        if self._namespace:
            line |= {"function": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"), "_aws": self._metrics(line)}
        write_line(line)

    def _metrics(self, line: dict[str, Any]) -> dict[str, Any]:
        metrics = [{"Name": name, "Unit": unit} for name, unit in METRICS.items() if name in line]
        directive = {"Namespace": self._namespace, "Dimensions": [["function"]], "Metrics": metrics}
        return {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}


def incident(request_id: str, error: BaseException) -> None:
    """Print a server error with its traceback."""
    import traceback

    trace = "".join(traceback.format_exception(error))
    write_line({"level": "ERROR", "request_id": request_id, "incident": type(error).__name__, "traceback": trace})


def write_line(line: dict[str, Any]) -> None:
    """Print a JSON object in one piece."""
    try:
        sys.stdout.write(to_json(line).decode() + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):  # the request is answered even if the log cannot be written
        return


def to_json(data: Any) -> bytes:
    """JSON of data that may quote a request. Lone surrogates in it, which orjson refuses, are escaped."""
    try:
        return orjson.dumps(data)
    except TypeError:
        import json

        return json.dumps(data).encode()
