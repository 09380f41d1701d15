"""HTTP in front of the function: requests to events, results to responses, as a Function URL or a REST API does it.

Event and result shapes: AWS Lambda Developer Guide, "Invoking Lambda function URLs" (payload format 2.0), and API
Gateway Developer Guide, "Lambda proxy integrations in API Gateway" (payload format 1.0).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
import uuid
import zlib
from abc import ABC, abstractmethod
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from local.environment import FunctionError
from local.function import MAX_PAYLOAD_BYTES, Function

_TEXT_TYPES = ("application/json", "application/javascript", "application/xml")


class MalformedResultError(Exception):
    """The handler returned what the front cannot turn into an HTTP response."""


class RefusedError(Exception):
    """The request is refused before the function sees it, with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"refused with {status}")
        self.status = status


class Front(ABC):
    """What differs between a Function URL and a REST API."""

    timeout: float | None = None
    """Seconds after which the front itself gives up waiting."""

    @abstractmethod
    def event(self, request: web.Request, body: bytes) -> dict[str, Any]:
        """The event for an HTTP request. Raises RefusedError."""

    @abstractmethod
    def response(self, result: Any) -> web.Response:
        """The HTTP response for a handler's result.

        Raises MalformedResultError.
        """

    @abstractmethod
    def failure(self, status: int) -> web.Response:
        """What AWS itself answers: 413 too large, 415 packed, 502 the function failed, 504 it took too long."""


class FunctionUrl(Front):
    """Payload format 2.0."""

    def event(self, request: web.Request, body: bytes) -> dict[str, Any]:
        text, encoded = _encode_body(request, body)
        cookies = [part.strip() for value in request.headers.getall("cookie", []) for part in value.split(";")]
        headers = {name: value for name, value in _joined(request.headers).items() if name != "cookie"}
        event = {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": request.path,
            "rawQueryString": request.query_string,
            "headers": headers,
            "requestContext": {
                "accountId": "anonymous",
                "apiId": "local",
                "domainName": "local.lambda-url.us-east-1.on.aws",
                "domainPrefix": "local",
                "http": {
                    "method": request.method,
                    "path": request.path,
                    "protocol": f"HTTP/{request.version.major}.{request.version.minor}",
                    "sourceIp": request.remote,
                    "userAgent": request.headers.get("user-agent", ""),
                },
                "requestId": str(uuid.uuid4()),
                "routeKey": "$default",
                "stage": "$default",
                "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime()),
                "timeEpoch": int(time.time() * 1000),
            },
            "isBase64Encoded": encoded,
        }
        optional = {"cookies": cookies, "queryStringParameters": _joined(request.query, lower=False), "body": text}
        return event | {name: value for name, value in optional.items() if value}

    def response(self, result: Any) -> web.Response:
        if not (isinstance(result, dict) and "statusCode" in result):
            return web.json_response(result)
        response = _proxy_response(result)
        for cookie in result.get("cookies", []):
            response.headers.add("set-cookie", cookie)
        return response

    def failure(self, status: int) -> web.Response:
        if status == 413:
            message = f"Request must be smaller than {MAX_PAYLOAD_BYTES} bytes for the InvokeFunction operation"
            return web.json_response({"Message": message}, status=413)
        return web.Response(text="Internal Server Error", status=502)


class RestApi(Front):
    """Payload format 1.0."""

    timeout = 29.0

    def event(self, request: web.Request, body: bytes) -> dict[str, Any]:
        # Without binary media types, which the template does not set, every body is text to it.
        text = _unpack(request, body).decode("utf-8", "replace")
        return {
            "resource": "/{proxy+}",
            "path": request.path,
            "httpMethod": request.method,
            "headers": dict(request.headers),
            "multiValueHeaders": {name: request.headers.getall(name) for name in request.headers},
            "queryStringParameters": dict(request.query) or None,
            "multiValueQueryStringParameters": {name: request.query.getall(name) for name in request.query} or None,
            "pathParameters": {"proxy": request.path.lstrip("/")},
            "stageVariables": None,
            "requestContext": {
                "accountId": "000000000000",
                "apiId": "local",
                "domainName": request.host,
                "httpMethod": request.method,
                "identity": {"sourceIp": request.remote, "userAgent": request.headers.get("user-agent", "")},
                "path": request.path,
                "protocol": f"HTTP/{request.version.major}.{request.version.minor}",
                "requestId": str(uuid.uuid4()),
                "requestTimeEpoch": int(time.time() * 1000),
                "resourcePath": "/{proxy+}",
                "stage": "local",
            },
            "body": text or None,
            "isBase64Encoded": False,
        }

    def response(self, result: Any) -> web.Response:
        if not (isinstance(result, dict) and "statusCode" in result):
            raise MalformedResultError("the result has no statusCode")
        response = _proxy_response(result)
        for name, values in (result.get("multiValueHeaders") or {}).items():
            response.headers.popall(name, None)
            response.headers.extend([(name, value) for value in values])
        return response

    def failure(self, status: int) -> web.Response:
        messages = {413: "Request Too Long", 415: "Unsupported Media Type", 504: "Endpoint request timed out"}
        return web.json_response({"message": messages.get(status, "Internal server error")}, status=status)


FRONTS: dict[str, type[Front]] = {"2.0": FunctionUrl, "1.0": RestApi}


def front_app(function: Function, front: Front) -> web.Application:
    """Every path and method, turned into an invocation."""

    async def handle(request: web.Request) -> web.Response:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return front.failure(413)
        except ConnectionError:  # the client left during the upload: nobody reads the answer
            return front.failure(502)
        try:
            event = json.dumps(front.event(request, body)).encode()
            # Shielded: whoever gives up waiting, the function goes on to its result or its own timeout.
            invocation = asyncio.create_task(function.invoke(event))
            invocation.add_done_callback(_seen)
            payload = await asyncio.wait_for(asyncio.shield(invocation), front.timeout)
            return front.response(json.loads(payload))
        except RefusedError as error:
            return front.failure(error.status)
        except FunctionError as error:
            return front.failure(413 if error.kind == "RequestEntityTooLarge" else 502)
        except TimeoutError:
            return front.failure(504)
        except (MalformedResultError, ValueError) as error:
            print(f"malformed result: {error}", flush=True)
            return front.failure(502)

    app = web.Application(client_max_size=MAX_PAYLOAD_BYTES)
    app.router.add_route("*", "/{path:.*}", handle)
    return app


def _seen(task: asyncio.Task[bytes]) -> None:
    """Fetch a result that nobody waits for any more, or asyncio would complain about it."""
    if not task.cancelled():
        task.exception()


def _encode_body(request: web.Request, body: bytes) -> tuple[str, bool]:
    """The body as it is in the event: text for content types that are text, else base64."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/") or kind in _TEXT_TYPES:
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), bool(body)


def _unpack(request: web.Request, body: bytes) -> bytes:
    """What a REST API makes of a packed body ("Payload compression for REST APIs"). Raises RefusedError."""
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding == "identity":
        return body
    if coding not in ("gzip", "deflate"):
        raise RefusedError(415)
    try:
        return zlib.decompress(body, 16 + zlib.MAX_WBITS if coding == "gzip" else zlib.MAX_WBITS)
    except zlib.error as error:
        raise RefusedError(415) from error


def _joined(values: Any, lower: bool = True) -> dict[str, str]:
    """One value for each name; several are joined by commas."""
    names = {name.lower() if lower else name: name for name in values}
    return {key: ",".join(values.getall(name)) for key, name in names.items()}


def _proxy_response(result: dict[str, Any]) -> web.Response:
    status, body, headers = result["statusCode"], result.get("body") or "", result.get("headers") or {}
    if not (isinstance(body, str) and isinstance(headers, dict)):
        raise MalformedResultError("body is not a string or headers is not an object")
    try:
        code = int(status)
        content = base64.b64decode(body, validate=True) if result.get("isBase64Encoded") else body.encode()
    except (TypeError, ValueError, binascii.Error) as error:
        raise MalformedResultError(str(error)) from error
    if not 100 <= code <= 599:
        raise MalformedResultError(f"statusCode is {status}")
    return web.Response(body=content, status=code, headers=CIMultiDict({k: str(v) for k, v in headers.items()}))
