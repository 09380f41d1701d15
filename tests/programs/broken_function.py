"""A handler whose import fails until the file named by READY exists."""

import os
from pathlib import Path

if not Path(os.environ["READY"]).exists():
    raise RuntimeError("the disk is not mounted yet")


def handler(event: object, context: object) -> object:
    return {"statusCode": 200, "body": "ready"}
