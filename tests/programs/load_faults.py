"""Handlers that answer some requests wrongly. Run by tests/test_load.py under the real runtime client."""

import json
import os
import signal
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np

from handler.app import lambda_handler

EVERY = 25
"""Of so many vectors' answers one is wrong."""


def _faults() -> Iterator[str]:
    for fault in cycle(["last bit", "status", "another's", "nothing"]):
        yield from [""] * (EVERY - 1)
        yield fault


_next_fault = _faults()
_previous: dict[str, Any] = {}


def handler(event: dict[str, Any], context: Any) -> Any:
    """As the service, but for a wrong last bit, a 500, another request's answer, and a death, in turns."""
    global _previous
    response = lambda_handler(event, context)
    if event["rawPath"] != "/embed" or response["statusCode"] != 200 or '"embedding":[' not in response["body"]:
        return response
    fault = next(_next_fault)
    if fault == "nothing":
        os._exit(1)
    if fault == "another's":
        return _previous
    _previous = response
    if fault == "status":
        return {**response, "statusCode": 500}
    if fault == "last bit":
        body = json.loads(response["body"])
        body["embedding"][7] = float(np.nextafter(np.float32(body["embedding"][7]), np.float32(2)))
        return {**response, "body": json.dumps(body)}
    return response


_remaining = 100


def deadly(event: dict[str, Any], context: Any) -> Any:
    """As the service, but the 100th request takes the service with it, and nobody answers any more."""
    global _remaining
    _remaining -= 1
    if not _remaining:
        os.kill(os.getppid(), signal.SIGKILL)
    return lambda_handler(event, context)


def forgetful(event: dict[str, Any], context: Any) -> Any:
    """As the service, but all answers have one id, and requests for pages are handled twice."""
    response = lambda_handler(event, context)
    if event["rawPath"] in ("/health", "/info"):
        response = lambda_handler(event, context)
    elif response["statusCode"] == 200:
        response["headers"]["x-request-id"] = "always the same"
    return response
