"""The Lambda Runtime API, which the runtime client in the child process calls.

Paths and headers as in the AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from local.environment import Environment, FunctionError, Invocation
from local.function import MAX_PAYLOAD_BYTES, Function

_BASE = "/2018-06-01/runtime"
_ERROR_TYPE = "Lambda-Runtime-Function-Error-Type"


def runtime_app(current: Callable[[], Function]) -> web.Application:
    """The Runtime API of a function; `current` gives it once it exists."""
    app = web.Application(client_max_size=16 * MAX_PAYLOAD_BYTES)

    async def next_invocation(request: web.Request) -> web.Response:
        function = current()
        invocation = await _environment(function).next_invocation()
        return web.Response(
            body=invocation.event,
            content_type="application/json",
            headers={
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(int(invocation.deadline * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": function.config.arn,
                "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Sampled=0",
            },
        )

    async def response(request: web.Request) -> web.Response:
        invocation = _invocation(current(), request)
        payload = await request.read()
        if len(payload) > MAX_PAYLOAD_BYTES:
            message = f"Response payload size exceeded maximum allowed payload size ({MAX_PAYLOAD_BYTES} bytes)."
            invocation.fail(FunctionError("Function.ResponseSizeTooLarge", message))
            return _status(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        invocation.succeed(payload)
        return _status(HTTPStatus.ACCEPTED)

    async def error(request: web.Request) -> web.Response:
        _invocation(current(), request).fail(await _read_error(request))
        return _status(HTTPStatus.ACCEPTED)

    async def init_error(request: web.Request) -> web.Response:
        _environment(current()).fail_init(await _read_error(request))
        return _status(HTTPStatus.ACCEPTED)

    app.router.add_get(f"{_BASE}/invocation/next", next_invocation)
    app.router.add_post(f"{_BASE}/invocation/{{request_id}}/response", response)
    app.router.add_post(f"{_BASE}/invocation/{{request_id}}/error", error)
    app.router.add_post(f"{_BASE}/init/error", init_error)
    return app


def _environment(function: Function) -> Environment:
    if function.environment is None:
        raise web.HTTPConflict(text="no execution environment has been started")
    return function.environment


def _invocation(function: Function, request: web.Request) -> Invocation:
    invocation = _environment(function).invocation
    if invocation is None or invocation.request_id != request.match_info["request_id"]:
        raise web.HTTPBadRequest(text=f"no invocation {request.match_info['request_id']} is under way")
    return invocation


async def _read_error(request: web.Request) -> FunctionError:
    report = await request.read()
    try:
        data = json.loads(report)
    except ValueError:
        data = None
    fields = data if isinstance(data, dict) else {}
    kind = fields.get("errorType") or request.headers.get(_ERROR_TYPE) or "Runtime.Unknown"
    return FunctionError(str(kind), str(fields.get("errorMessage") or ""), report if fields else None)


def _status(status: HTTPStatus) -> web.Response:
    return web.json_response({"status": status.phrase}, status=status)
