"""What can be wrong with a request or the service, one class a meaning, and the one table of HTTP statuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handler.artifact import ArtifactError
from handler.settings import ConfigurationError


class RequestError(Exception):
    """The client's fault. `param` names the field at fault, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError):
    """The request is not JSON, or a field is missing, unknown or of a wrong type."""


class UnknownRouteError(RequestError):
    """No such path."""


class MethodNotAllowedError(RequestError):
    """The path exists, but not for this method. `allow` lists the methods it has."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooLargeError(RequestError):
    """The response would not fit into what Lambda can return."""


STATUS: Mapping[type[Exception], tuple[int, str, str]] = {
    InvalidRequestError: (400, "invalid_request_error", "invalid_request"),
    UnknownRouteError: (404, "invalid_request_error", "unknown_route"),
    MethodNotAllowedError: (405, "invalid_request_error", "method_not_allowed"),
    TooLargeError: (413, "invalid_request_error", "too_large"),
    ArtifactError: (503, "server_error", "model_unavailable"),
    ConfigurationError: (503, "server_error", "misconfigured"),
}
"""Error class -> HTTP status, `type` and `code` of the body. Anything else is a fault of ours and is raised."""

ANSWERED = tuple(STATUS)
"""The errors that become a response."""


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON body of an error of STATUS, in the form that OpenAI's clients read."""
    status, kind, code = next(row for known, row in STATUS.items() if isinstance(error, known))
    fault = {"message": str(error), "type": kind, "param": getattr(error, "param", None), "code": code}
    return status, {"error": fault}
