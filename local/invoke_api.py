"""Lambda's Invoke API in front of the function, for boto3 and the other SDKs.

Paths, headers and errors as in the AWS Lambda API Reference, "Invoke". Signatures are not checked.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from http import HTTPStatus

from aiohttp import web

from local.environment import FunctionError
from local.function import MAX_PAYLOAD_BYTES, Function

MAX_EVENT_BYTES = 1024 * 1024
"""Lambda's limit for the payload of an asynchronous invocation ("Lambda quotas")."""

_UNSUPPORTED = {
    "x-amz-log-type": ("Tail", "the log is on the standard error of python -m local"),
    "x-amz-client-context": (None, "put what the function should know into the payload"),
}
"""Header -> the value that cannot be served here (None: any), and what to do instead."""


class InvokeError(Exception):
    """The invocation is refused before the function sees it. `kind` is the exception's name in the SDKs."""

    def __init__(self, status: HTTPStatus, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def invoke_app(function: Function) -> web.Application:
    """The Invoke API of one function; any other name is not found."""
    queued: set[asyncio.Task[None]] = set()

    async def invoke(request: web.Request) -> web.Response:
        request_id = str(uuid.uuid4())
        try:
            response = await _invoke(function, request, request_id, queued)
        except InvokeError as error:
            response = _refusal(error)
        except ConnectionError:  # the client left during the upload: nobody reads the answer
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        response.headers["x-amzn-RequestId"] = request_id
        return response

    async def forget_queued(_: web.Application) -> None:
        for task in queued:
            task.cancel()

    app = web.Application(client_max_size=MAX_PAYLOAD_BYTES)
    app.router.add_route("*", "/{path:.*}", invoke)
    app.on_shutdown.append(forget_queued)
    return app


async def _invoke(
    function: Function, request: web.Request, request_id: str, queued: set[asyncio.Task[None]]
) -> web.Response:
    _check_target(function, request)
    _check_headers(request)
    kind = request.headers.get("x-amz-invocation-type", "RequestResponse")
    if kind == "DryRun":
        return web.Response(status=HTTPStatus.NO_CONTENT)
    if kind == "Event":
        event = await _read_payload(request, MAX_EVENT_BYTES)
        task = asyncio.create_task(_invoke_unattended(function, event, request_id))
        queued.add(task)
        task.add_done_callback(queued.discard)
        return web.Response(status=HTTPStatus.ACCEPTED)
    if kind != "RequestResponse":
        raise _invalid_parameter(f"InvocationType is {kind!a}: send RequestResponse, Event or DryRun")
    event = await _read_payload(request, MAX_PAYLOAD_BYTES)
    headers = {"X-Amz-Executed-Version": "$LATEST"}
    try:
        payload = await function.invoke(event, request_id)
    except FunctionError as error:
        headers["X-Amz-Function-Error"] = "Unhandled"
        payload = error.report or _report(error, request_id)
    return web.Response(body=payload, content_type="application/json", headers=headers)


async def _invoke_unattended(function: Function, event: bytes, request_id: str) -> None:
    """An asynchronous invocation, attempted once; Lambda would try it twice more. A failure is in the log."""
    try:
        await function.invoke(event, request_id)
    except FunctionError:
        return


def _check_target(function: Function, request: web.Request) -> None:
    """Raise InvokeError unless path, method, name and qualifier are those of an invocation of this function."""
    parts = request.path.strip("/").split("/")
    if len(parts) != 4 or parts[:2] != ["2015-03-31", "functions"] or parts[3] != "invocations":
        known = "/2015-03-31/functions/{name}/invocations"
        raise InvokeError(HTTPStatus.NOT_FOUND, "UnknownOperationException", f"only POST {known} is served here")
    if request.method != "POST":
        message = f"Invoke does not answer {request.method}: send POST"
        raise InvokeError(HTTPStatus.METHOD_NOT_ALLOWED, "UnknownOperationException", message)
    config = function.config
    names = (config.name, f"{config.account}:function:{config.name}", config.arn)
    name, qualifier = parts[2].removesuffix(":$LATEST"), request.query.get("Qualifier", "$LATEST")
    if name not in names or qualifier != "$LATEST":
        version = "" if qualifier == "$LATEST" else f" with qualifier {qualifier!a}"
        message = f"Function not found: {name!a}{version}; served here: {config.name} ({config.arn}), $LATEST"
        raise InvokeError(HTTPStatus.NOT_FOUND, "ResourceNotFoundException", message)


def _check_headers(request: web.Request) -> None:
    for name, (refused, remedy) in _UNSUPPORTED.items():
        value = request.headers.get(name)
        if value is not None and refused in (None, value):
            raise _invalid_parameter(f"{name} {value[:100]!a} is not served here: {remedy}")


async def _read_payload(request: web.Request, limit: int) -> bytes:
    """The event: JSON in UTF-8, `{}` where nothing is sent.

    Raises InvokeError.
    """
    try:
        payload = await request.read()
    except web.HTTPRequestEntityTooLarge:
        payload = None
    if payload is None or len(payload) > limit:
        message = f"Request must be smaller than {limit} bytes for the InvokeFunction operation"
        raise InvokeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestTooLargeException", message)
    try:
        json.loads(payload.decode() or "{}")
    except (ValueError, RecursionError) as error:
        message = f"Could not parse request body into json: {error}"
        raise InvokeError(HTTPStatus.BAD_REQUEST, "InvalidRequestContentException", message) from error
    return payload or b"{}"


def _report(error: FunctionError, request_id: str) -> bytes:
    """Lambda's own report on a function that timed out, crashed or returned too much."""
    message = f"RequestId: {request_id} Error: {error}"
    return json.dumps({"errorType": error.kind, "errorMessage": message}).encode()


def _invalid_parameter(message: str) -> InvokeError:
    return InvokeError(HTTPStatus.BAD_REQUEST, "InvalidParameterValueException", message)


def _refusal(error: InvokeError) -> web.Response:
    body = {"Type": "User", "Message": str(error)}
    return web.json_response(body, status=error.status, headers={"x-amzn-ErrorType": error.kind})
