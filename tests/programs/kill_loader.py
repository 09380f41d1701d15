"""Loads a version once for each step of it on the file system, and dies by SIGKILL before that step.

Arguments: MODEL_CACHE_DIR, model, version, means. Each load starts from the same state. With the means `audit`, steps
are what Python's audit events tell; with `strace`, which must be installed, system calls. After each load comes a line
of JSON: the step, the load's status, what a reader finds before it, after it, and after one more load.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from artifact.manifest import CURRENT, ArtifactError, open_artifact
from loader import app, bucket

models, model, version, means = sys.argv[1:]
folder = Path(models, model)
initial = Path(f"{models}.initial")
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link")
SYSTEM_CALLS = (
    "mkdir",
    "mkdirat",
    "link",
    "linkat",
    "rename",
    "renameat",
    "unlink",
    "unlinkat",
    "rmdir",
    "write",
    "fsync",
)
"""Those that change files. Most of those that open files are boto3's: of these the audit events tell ours."""


def load() -> None:
    app.lambda_handler({"action": "load", "model": model, "version": version}, None)


def in_child(task: Callable[[], object]) -> int:
    """The process that does it."""
    child = os.fork()
    if child == 0:
        task()
        os._exit(0)
    return child


def by_audit(step: int) -> int:
    """Load and die before the `step`-th event; the process's status."""
    remaining = step

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal remaining
        if event in EVENTS and str(arguments[0]).startswith(models):
            remaining -= 1
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def task() -> None:
        sys.addaudithook(count)
        load()

    return os.waitstatus_to_exitcode(os.waitpid(in_child(task), 0)[1])


def by_strace(call: str, step: int) -> int:
    """Load and die before the `step`-th system call of this name; the process's status."""

    def task() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        load()

    child = in_child(task)
    os.waitpid(child, os.WUNTRACED)
    injected = f"inject=?{call}:signal=SIGKILL:when={step}"
    command = ["strace", "-qq", "-o", os.devnull, "-e", f"trace=?{call}", "-e", injected, "-p", str(child)]
    with subprocess.Popen(command) as strace:
        status = Path(f"/proc/{child}/status")
        while f"TracerPid:\t{strace.pid}\n" not in status.read_text():
            if strace.poll() is not None:
                sys.exit(f"strace ended with {strace.returncode}")
            time.sleep(0.002)
        os.kill(child, signal.SIGCONT)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def found() -> dict[str, Any]:
    """What a reader finds."""
    try:
        artifact = open_artifact(folder)
        artifact.check_digests()
        problem = None
    except ArtifactError as error:
        problem = str(error)
    in_use = (folder / CURRENT).read_text().strip()
    files = {path.name: path.stat().st_ino for path in (folder / in_use).iterdir()}
    return {"version": in_use, "problem": problem, "files": files}


def steps() -> Iterator[dict[str, Any]]:
    """Each step by name, what a reader finds before the load that dies at it, and that load's status.

    Of each kind of step the last is one too many: the load gets through.
    """
    for kind in SYSTEM_CALLS if means == "strace" else ("event",):
        for step in range(1, 200):
            if folder.exists():
                shutil.rmtree(folder)
            shutil.copytree(initial, folder)
            before = found()
            status = by_strace(kind, step) if means == "strace" else by_audit(step)
            yield {"step": f"{kind} {step}", "before": before, "status": status}
            if status == 0:
                break
        else:
            sys.exit(f"more steps than expected: {kind}")


bucket.CHUNK_BYTES = 1 << 20
folder.rename(initial)
sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
output = os.dup(1)
os.dup2(2, 1)  # the loader's own lines
for line in steps():
    line["after"] = found()
    line["again"] = os.waitstatus_to_exitcode(os.waitpid(in_child(load), 0)[1])
    line["then"] = found()
    line["leftovers"] = sum(path.name.startswith(".staging-") for path in folder.iterdir())
    os.write(output, json.dumps(line).encode() + b"\n")
