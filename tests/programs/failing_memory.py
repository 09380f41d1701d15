"""Load the model of argv[1] and run it, with each request of the operators for memory failing once.

Prints the messages of the failures, one a line, and "same" if what came out in the end is what comes without failures.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from artifact.manifest import open_artifact
from handler.embedder import load_session

artifact = open_artifact(sys.argv[1])
memory = ctypes.CDLL(None)


def compute() -> np.ndarray:
    hidden: np.ndarray = load_session(artifact, "int8").run(None, {"input_ids": np.full((3, 20), 101)})[0]
    return hidden


wanted = compute()
for request in range(1000):
    memory.fail_at(request)
    try:
        found = compute()
    except Exception as error:  # noqa: BLE001  which one it is the test looks at
        print(str(error).replace("\n", " "))
        continue
    if memory.not_failed_yet():
        print("same" if (found == wanted).all() else "other", request)
        break
    print("swallowed")
memory.fail_at(-1)
