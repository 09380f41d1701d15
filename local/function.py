"""The function: events in, results out, one at a time, through execution environments that come and go."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local.environment import INIT_SECONDS, Environment, FunctionError, Invocation

MAX_PAYLOAD_BYTES = 6 * 1024 * 1024
"""Lambda's limit for the event and for the buffered response (AWS Lambda Developer Guide, "Lambda quotas")."""

_ENDING = ("Sandbox.Timedout", "Function.ResponseSizeTooLarge")
"""Errors that end the process: Lambda kills it, or the runtime client gives up when its response is refused."""


@dataclass(frozen=True)
class FunctionConfig:
    """The configuration of a deployed function."""

    handler: str
    folder: Path
    timeout: float
    """Seconds an invocation may take."""
    memory_mb: int
    """The function is told this limit; it is not enforced."""
    python: str = sys.executable
    """Python with `awslambdaric` that runs the function."""
    name: str = "local"
    region: str = "us-east-1"
    account: str = "000000000000"

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:function:{self.name}"

    def variables(self, runtime_api: str) -> Mapping[str, str]:
        """The environment variables that Lambda defines ("Defined runtime environment variables")."""
        return {
            "AWS_LAMBDA_RUNTIME_API": runtime_api,
            "_HANDLER": self.handler,
            "LAMBDA_TASK_ROOT": str(self.folder),
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory_mb),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": "local",
            "TZ": ":UTC",
        }


class Function:
    """A deployed function. `invoke` may be called by many at once; they take turns."""

    def __init__(self, config: FunctionConfig, runtime_api: str) -> None:
        self.config = config
        self.environment: Environment | None = None
        """The one that the Runtime API serves now."""
        self._variables = config.variables(runtime_api)
        self._turn = asyncio.Lock()
        self._restart: asyncio.Task[None] | None = None

    async def warm_up(self) -> None:
        """Start the function before anybody asks for it. A failure is shown; the next invocation tries again."""
        async with self._turn:
            try:
                await self._ready_environment(INIT_SECONDS)
            except FunctionError as error:
                _log(f"INIT failed: {error.kind}: {error}")

    async def invoke(self, event: bytes, request_id: str | None = None) -> bytes:
        """The JSON result of the handler for a JSON event; a request id is made up unless one is given.

        Raises FunctionError.
        """
        if len(event) > MAX_PAYLOAD_BYTES:
            raise FunctionError("RequestEntityTooLarge", f"the event has {len(event)} bytes, over {MAX_PAYLOAD_BYTES}")
        async with self._turn:
            environment = await self._ready_environment(max(INIT_SECONDS, self.config.timeout))
            invocation = Invocation(event, self.config.timeout, request_id or str(uuid.uuid4()))
            _log(f"START RequestId: {invocation.request_id} Version: $LATEST")
            started = time.monotonic()
            try:
                return await environment.run(invocation)
            except FunctionError as error:
                _log(f"{invocation.request_id} {error.kind}: {error}")
                if error.kind in _ENDING or not environment.alive:
                    await self._replace(environment)
                raise
            finally:
                self._report(invocation, environment, time.monotonic() - started)

    async def stop(self) -> None:
        """End the child, for good."""
        if self._restart is not None:
            self._restart.cancel()
        if self.environment is not None:
            await self.environment.stop()

    async def _ready_environment(self, init_timeout: float) -> Environment:
        environment = self.environment
        if environment is None or not environment.alive:
            config = self.config
            environment = await Environment.start(config.handler, self._variables, config.folder, config.python)
            self.environment = environment
        try:
            seconds = await environment.wait_ready(init_timeout)
        except FunctionError:
            await environment.stop()
            raise
        if not environment.reported:
            environment.reported = True
            _log(f"INIT_START Init Duration: {seconds * 1000:.2f} ms")
        return environment

    async def _replace(self, environment: Environment) -> None:
        """End an environment and start the next one at once, so that the next request need not wait for it."""
        await environment.stop()
        self._restart = asyncio.create_task(self.warm_up())

    def _report(self, invocation: Invocation, environment: Environment, seconds: float) -> None:
        memory = environment.peak_memory_mb()
        used = "" if memory is None else f" Max Memory Used: {memory} MB"
        _log(
            f"REPORT RequestId: {invocation.request_id} Duration: {seconds * 1000:.2f} ms "
            f"Memory Size: {self.config.memory_mb} MB{used}"
        )


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
