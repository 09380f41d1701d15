"""Loads a version once for each step of it on the file system, and dies by SIGKILL before that step.

Arguments: MODEL_CACHE_DIR, model, version. Between the steps it says what a reader finds: `STEP STATUS VERSION`.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from handler.artifact import open_artifact
from loader import app, bucket

models, model, version = sys.argv[1:]
remaining = 0


def count(event: str, arguments: tuple[Any, ...]) -> None:
    global remaining
    steps = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
    if event in steps and str(arguments[0]).startswith(models):
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)


for step in range(1, 200):
    child = os.fork()
    if child == 0:
        bucket.CHUNK_BYTES = 1 << 16
        remaining = step
        sys.addaudithook(count)
        app.lambda_handler({"action": "load", "model": model, "version": version}, None)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    artifact = open_artifact(Path(models, model))
    artifact.check_digests()
    print(step, status, artifact.manifest.version, flush=True)
    if status == 0:
        break
