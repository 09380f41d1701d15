"""One execution environment: the runtime client as a child process, and its invocations.

Follows "Lambda execution environment lifecycle" in the AWS Lambda Developer Guide: init runs before the first
invocation, one invocation at a time, a timeout or a crash ends the process and the next one starts afresh.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INIT_SECONDS = 10.0
"""How long Lambda waits for init before the first invocation."""


class FunctionError(Exception):
    """The function gave no result. `kind` is what Lambda calls the error, such as `Sandbox.Timedout`.

    `report` is the JSON in which the runtime client reported it; None if it did not.
    """

    def __init__(self, kind: str, message: str, report: bytes | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.report = report


@dataclass
class Invocation:
    """One event on its way through the function."""

    event: bytes
    timeout: float
    """Seconds it may take, counted from here."""
    request_id: str
    deadline: float = field(init=False)
    """Unix time in seconds."""
    result: asyncio.Future[bytes] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self.deadline = time.time() + self.timeout

    def succeed(self, payload: bytes) -> None:
        if not self.result.done():
            self.result.set_result(payload)

    def fail(self, error: FunctionError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class Environment:
    """A child process running `awslambdaric`, from its start to its end. The Runtime API drives it."""

    def __init__(self, process: asyncio.subprocess.Process, started: float) -> None:
        self.process = process
        self.invocation: Invocation | None = None
        self.ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        """Seconds that init took, or the FunctionError it failed with."""
        self.reported = False
        """True once its init is in the log."""
        self._started = started
        self._pending: asyncio.Queue[Invocation] = asyncio.Queue()
        self._exit = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls, handler: str, variables: Mapping[str, str], folder: Path, python: str = sys.executable
    ) -> Environment:
        """Start the runtime client as Lambda does: `python -m awslambdaric HANDLER` in the function's folder."""
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            python,
            "-m",
            "awslambdaric",
            handler,
            cwd=folder,
            env={**os.environ, **variables},
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only this program, which then ends the child
        )
        return cls(process, started)

    @property
    def alive(self) -> bool:
        """False as soon as the process is gone. asyncio learns this a moment later, from another thread."""
        if self.process.returncode is not None:
            return False
        try:
            os.kill(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    async def next_invocation(self) -> Invocation:
        """Wait for the next invocation. A child's first call means that its init is over."""
        if not self.ready.done():
            self.ready.set_result(time.monotonic() - self._started)
        self.invocation = await self._pending.get()
        return self.invocation

    def fail_init(self, error: FunctionError) -> None:
        """The child has reported that importing the handler failed."""
        if not self.ready.done():
            self.ready.set_exception(error)

    async def run(self, invocation: Invocation) -> bytes:
        """Hand over an invocation and wait for its result.

        Raises FunctionError as the function reported it, at the deadline, or when the child ends.
        """
        await self._pending.put(invocation)
        waits: set[asyncio.Future[Any]] = {invocation.result, self._exit}
        timeout = invocation.deadline - time.time()
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if invocation.result.done():
            return invocation.result.result()
        invocation.result.cancel()
        if self._exit.done():
            raise FunctionError("Runtime.ExitError", f"the function's process ended: {describe_exit(self.process)}")
        raise FunctionError("Sandbox.Timedout", f"Task timed out after {invocation.timeout:.2f} seconds")

    async def wait_ready(self, timeout: float) -> float:
        """Seconds that init took.

        Raises FunctionError if it failed, did not end within `timeout` seconds, or the child ended.
        """
        try:
            return await asyncio.wait_for(asyncio.shield(self.ready), timeout)
        except TimeoutError:
            raise FunctionError("Sandbox.Timedout", f"init did not end within {timeout:.0f} s") from None

    async def stop(self) -> None:
        """End the child and whatever it has started, at once."""
        _signal_group(self.process.pid, signal.SIGKILL)
        await asyncio.shield(self._exit)

    def peak_memory_mb(self) -> int | None:
        """Peak resident memory of the child in MB; None without /proc."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), None)

    async def _watch(self) -> None:
        await self.process.wait()
        self.fail_init(FunctionError("Runtime.ExitError", f"the process ended in init: {describe_exit(self.process)}"))
        self.ready.exception()  # seen, even if nobody waits for it


def describe_exit(process: asyncio.subprocess.Process) -> str:
    code = process.returncode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
