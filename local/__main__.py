"""python -m local: the function behind a Function URL on this machine."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
from pathlib import Path

try:
    import awslambdaric  # noqa: F401  the child needs it, and its message would be less clear
    from aiohttp import web

    from local.front import FRONTS, front_app
    from local.function import Function, FunctionConfig
    from local.invoke_api import invoke_app
    from local.runtime_api import runtime_app
except ModuleNotFoundError as error:
    sys.exit(f"local: {error.name} is missing, install what running locally needs with: pip install '.[local]'")


def main() -> int:
    arguments = _parse_arguments()
    try:
        asyncio.run(_serve(arguments))
    except ListenError as error:
        print(f"local: {error}", file=sys.stderr)
        return 1
    return 0


class ListenError(Exception):
    """A port is taken or not allowed; the message names it."""


async def _serve(arguments: argparse.Namespace) -> None:
    config = FunctionConfig(
        arguments.handler, arguments.folder.resolve(), arguments.timeout, arguments.memory, arguments.python
    )
    function: Function
    runtime = await _listen(runtime_app(lambda: function), "127.0.0.1", 0, cancel_on_disconnect=True)
    function = Function(config, runtime_api=f"127.0.0.1:{runtime.addresses[0][1]}")
    runners = [runtime]
    try:
        front = front_app(function, FRONTS[arguments.payload_format]())
        runners.append(await _listen(front, arguments.host, arguments.port))
        url = _url(runners[-1], arguments.host)
        if arguments.invoke_port is not None:
            runners.append(await _listen(invoke_app(function), arguments.host, arguments.invoke_port))
            print(f"invoke: {_url(runners[-1], arguments.host)}", flush=True)
        await function.warm_up()
        stopped = _stop_signal()
        print(f"""ready: curl -s {url}/embed -d '{{"text":"vitamin d"}}'""", flush=True)
        await stopped.wait()
    finally:
        await function.stop()
        for runner in reversed(runners):
            await runner.cleanup()


async def _listen(app: web.Application, host: str, port: int, cancel_on_disconnect: bool = False) -> web.AppRunner:
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=cancel_on_disconnect,
        shutdown_timeout=1.0,
        auto_decompress=False,  # Lambda hands bodies over as they come
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return runner


def _url(runner: web.AppRunner, host: str) -> str:
    return f"http://{host}:{runner.addresses[0][1]}"


def _stop_signal() -> asyncio.Event:
    """Set by Ctrl-C or SIGTERM from now on."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


def _program(name: str) -> str:
    """The absolute path of a program, for use in the function's folder. Raises ArgumentTypeError if there is none."""
    found = shutil.which(name)
    if found is None:
        raise argparse.ArgumentTypeError(f"there is no program {name}")
    return str(Path(found).absolute())


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local", description="Run a Lambda function here, under AWS's runtime client, behind HTTP."
    )
    parser.add_argument("handler", nargs="?", default="handler.app.lambda_handler", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path(), help="the function's folder; default: this one")
    parser.add_argument(
        "--python",
        type=_program,
        default=sys.executable,
        metavar="PROGRAM",
        help="Python with awslambdaric that runs the function; default: this one",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="0 for any free one; default: %(default)s")
    parser.add_argument(
        "--invoke-port",
        type=int,
        metavar="PORT",
        help="port of Lambda's Invoke API, for boto3; 0 for any free one; default: no such API",
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="seconds per invocation; default: %(default)s"
    )
    parser.add_argument(
        "--memory", type=int, default=1769, metavar="MB", help="MB that the function is told; default: %(default)s"
    )
    parser.add_argument(
        "--payload-format",
        choices=FRONTS,
        default="2.0",
        help="events as a Function URL (2.0) or an API Gateway REST API (1.0) sends them; default: %(default)s",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
