"""Parts of `local` whose limits are too long to wait for over HTTP, run inside this process."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from local.__main__ import _listen
from local.environment import Environment, FunctionError
from local.front import RestApi, front_app
from local.function import Function, FunctionConfig
from local.runtime_api import runtime_app
from tests.support.servers import ROOT

CONFIG = FunctionConfig("tests.programs.functions.handler", ROOT, timeout=3.0, memory_mb=512)
BASE = "/2018-06-01/runtime"


@asynccontextmanager
async def running(config: FunctionConfig = CONFIG) -> AsyncIterator[tuple[Function, str]]:
    """A function and the address of its Runtime API; nothing is started yet."""
    function: Function
    runtime = await _listen(runtime_app(lambda: function), "127.0.0.1", 0, cancel_on_disconnect=True)
    address = f"127.0.0.1:{runtime.addresses[0][1]}"
    function = Function(config, address)
    try:
        yield function, f"http://{address}{BASE}"
    finally:
        await function.stop()
        await runtime.cleanup()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def event(path: str) -> bytes:
    return json.dumps({"rawPath": path}).encode()


def test_a_rest_api_gives_up_before_the_function() -> None:
    async def test() -> None:
        async with running() as (function, _), aiohttp.ClientSession() as client:
            front = RestApi()
            front.timeout = 0.5
            runner = await _listen(front_app(function, front), "127.0.0.1", 0)
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with client.get(f"{url}/sleep/30") as response:
                assert response.status == 504
                assert await response.json() == {"message": "Endpoint request timed out"}
            front.timeout = 29.0
            async with client.get(f"{url}/pid") as response:  # waits for the timeout of the one before
                assert response.status == 200
            await runner.cleanup()

    run(test)


def test_init_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "slow.py").write_text("import time; time.sleep(60)\n")
        config = FunctionConfig("slow.handler", tmp_path, timeout=3.0, memory_mb=512)
        async with running(config) as (function, _):
            environment = await Environment.start(config.handler, config.variables("127.0.0.1:9"), config.folder)
            with pytest.raises(FunctionError, match="init did not end within 1 s"):
                await environment.wait_ready(1.0)
            await environment.stop()
            assert not environment.alive
            assert function.environment is None

    run(test)


def test_the_runtime_api_refuses_what_nobody_asked_for() -> None:
    async def test() -> None:
        async with running() as (function, api), aiohttp.ClientSession() as client:
            async with client.get(f"{api}/invocation/next") as response:
                assert response.status == 409
            await function.warm_up()
            for path in ("response", "error"):
                async with client.post(f"{api}/invocation/unknown/{path}", data=b"{}") as response:
                    assert response.status == 400
            assert json.loads(await function.invoke(event("/pid")))["statusCode"] == 200

    run(test)


def test_errors_of_the_function_keep_their_names() -> None:
    async def test() -> None:
        async with running() as (function, _):
            with pytest.raises(FunctionError, match="division") as caught:
                await function.invoke(event("/raise"))
            assert caught.value.kind == "ZeroDivisionError"

    run(test)


def test_an_error_report_that_is_no_json_is_an_error_all_the_same() -> None:
    async def test() -> None:
        async with running() as (function, api), aiohttp.ClientSession() as client:
            invocation = asyncio.create_task(function.invoke(event("/sleep/2")))
            while function.environment is None or function.environment.invocation is None:
                await asyncio.sleep(0.01)
            request_id = function.environment.invocation.request_id
            headers = {"Lambda-Runtime-Function-Error-Type": "Runtime.Odd"}
            async with client.post(f"{api}/invocation/{request_id}/error", data=b"?", headers=headers) as response:
                assert response.status == 202
            with pytest.raises(FunctionError) as caught:
                await invocation
            assert caught.value.kind == "Runtime.Odd"

    run(test)
