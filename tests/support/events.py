"""Events as Lambda hands them over, and what a test looks at in the answer."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

LoadApp = Callable[..., ModuleType]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
REQUEST_ID = "5f0c1d8a"
LONG = "word " * 300


def function_url_event(
    body: str | None, path: str = "/embed", method: str = "POST", encoded: bool = False
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {"http": {"method": method, "path": path}, "stage": "$default", "requestId": REQUEST_ID},
        "isBase64Encoded": encoded,
    }
    return event if body is None else event | {"body": body}


def rest_api_event(
    body: str | None, path: str = "/embed", method: str = "POST", encoded: bool = False
) -> dict[str, Any]:
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {"Content-Type": "application/json"},
        "requestContext": {"stage": "prod", "path": "/prod" + path, "requestId": REQUEST_ID},
        "body": body,
        "isBase64Encoded": encoded,
    }


EVENTS = {"function-url": function_url_event, "rest-api": rest_api_event}


def body_of(response: dict[str, Any], status: int = 200) -> Any:
    assert response["statusCode"] == status, response["body"]
    assert response["headers"]["content-type"] == "application/json"
    assert response["isBase64Encoded"] is False
    return json.loads(response["body"])


def error_of(response: dict[str, Any], status: int) -> dict[str, Any]:
    body = body_of(response, status)
    assert set(body) == {"error", "request_id"}
    assert body["request_id"] == response["headers"]["x-request-id"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]
