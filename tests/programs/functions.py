"""Handlers that do what real ones do on a bad day. Run by tests/test_local.py under the real runtime client."""

import json
import os
import time
from typing import Any


def handler(event: dict[str, Any], context: Any) -> Any:
    """Does what the path asks for."""
    path = event.get("rawPath") or event["path"]
    name, _, argument = path.strip("/").partition("/")
    actions = {
        "echo": lambda: {"statusCode": 200, "body": json.dumps(event)},
        "pid": lambda: {"statusCode": 200, "body": str(os.getpid())},
        "sleep": lambda: sleep(float(argument)),
        "exit": lambda: os._exit(int(argument)),
        "kill": lambda: os.kill(os.getpid(), int(argument)),
        "raise": lambda: 1 // 0,
        "big": lambda: {"statusCode": 200, "body": "x" * int(argument)},
        "plain": lambda: {"any": ["object"]},
        "malformed": lambda: {"statusCode": "many", "body": ""},
        "no-body": lambda: {"statusCode": 204},
        "binary": lambda: {"statusCode": 200, "body": "AP8=", "isBase64Encoded": True, "headers": {"x-a": "b"}},
        "cookies": lambda: {"statusCode": 200, "body": "", "cookies": ["a=1", "b=2"]},
        "remaining": lambda: {"statusCode": 200, "body": str(context.get_remaining_time_in_millis())},
        "environment": lambda: {"statusCode": 200, "body": json.dumps(dict(os.environ))},
    }
    return actions[name]()


def sleep(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {"statusCode": 200, "body": "slept"}
