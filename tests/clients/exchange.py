"""How tests/test_clients.py talks with the clients' programs: arguments and texts in, vectors or an error out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

MODEL = "all-MiniLM-L6-v2"


def run(embed: Callable[[argparse.Namespace, list[str]], dict[str, Any]]) -> None:
    """Call `embed(arguments, texts)` with a JSON array from stdin and print its result as JSON.

    The result has `vectors` and, where the client tells them, `prompt_tokens`. An exception is printed as `error`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="of the service, without a path")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--option", help="what this program does differently")
    arguments = parser.parse_args()
    try:
        result = embed(arguments, json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001  whatever the client makes of an answer is what is tested
        result = {"error": _describe(error)}
    json.dump(result, sys.stdout)


def _describe(error: Exception) -> dict[str, Any]:
    """Class, HTTP status and message of a client's exception, as far as it tells them."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return {
        "class": type(error).__name__,
        "status": status,
        "message": str(error),
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }
