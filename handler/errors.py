"""What can be wrong with a request or the service, one class for each meaning, and the table of HTTP statuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from artifact.manifest import ArtifactError
from handler.settings import ConfigurationError


class RequestError(Exception):
    """The client's fault. `param` names the field at fault, where there is one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError):
    """The request is not JSON, or a field is missing, unknown or of a wrong type."""


class TextTooLongError(RequestError):
    """A text has more tokens than the model reads, and the request forbids cutting it."""


class ModelNotFoundError(RequestError):
    """The request names a model that is not served."""


class UnknownRouteError(RequestError):
    """The path does not exist."""


class MethodNotAllowedError(RequestError):
    """The path exists, but not for this method. `allow` lists the methods it has."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooLargeError(RequestError):
    """The request is over a limit, or the response would not fit into what Lambda can return."""


class UnsupportedEncodingError(RequestError):
    """The body has a content coding that is not read here."""


class TooManyTokensError(RequestError):
    """The texts take longer than the function's timeout, even at its best speed."""


class DeadlineError(Exception):
    """The function's time was up before the vectors were done."""


class BadVectorError(Exception):
    """The model gave a vector that is not finite or has a wrong norm."""


class Status(NamedTuple):
    """How an error is answered."""

    status: int
    type: str
    code: str
    retry_after: int | None = None
    """Seconds after which to try again, where that can help."""


STATUS: Mapping[type[BaseException], Status] = {
    InvalidRequestError: Status(400, "invalid_request_error", "invalid_request"),
    TextTooLongError: Status(400, "invalid_request_error", "text_too_long"),
    ModelNotFoundError: Status(404, "invalid_request_error", "model_not_found"),
    UnknownRouteError: Status(404, "invalid_request_error", "unknown_route"),
    MethodNotAllowedError: Status(405, "invalid_request_error", "method_not_allowed"),
    TooLargeError: Status(413, "invalid_request_error", "too_large"),
    UnsupportedEncodingError: Status(415, "invalid_request_error", "unsupported_encoding"),
    TooManyTokensError: Status(413, "invalid_request_error", "too_many_tokens"),
    BadVectorError: Status(500, "server_error", "bad_vector"),
    ArtifactError: Status(503, "server_error", "model_unavailable", retry_after=5),
    ConfigurationError: Status(503, "server_error", "misconfigured", retry_after=60),
    DeadlineError: Status(503, "server_error", "deadline_exceeded", retry_after=1),
    BaseException: Status(500, "server_error", "internal_error"),
}
"""Error class -> how it is answered. The last row is for unforeseen errors."""


def status_of(error: BaseException) -> Status:
    """The row of STATUS for an error."""
    return next(status for known, status in STATUS.items() if isinstance(error, known))


def describe(error: BaseException, request_id: str) -> dict[str, Any]:
    """The JSON body of an error, in the form that OpenAI's clients read, with the request id that the log has too.

    Clients do not see the message of an error without a row of its own: it is in the log alone.
    """
    status = status_of(error)
    unforeseen = status is STATUS[BaseException]
    message = "internal error; search the function's log for this request id" if unforeseen else str(error)
    fault = {"message": message, "type": status.type, "param": getattr(error, "param", None), "code": status.code}
    return {"error": fault, "request_id": request_id}


def describe_invoke(error: BaseException, request_id: str) -> dict[str, Any]:
    """As `describe`, for the result of a direct invocation: with the HTTP status, and fit for UTF-8."""
    answer = describe(error, request_id)
    fault = answer["error"]
    if fault["param"] is not None:
        fault["param"] = fault["param"].encode("utf-8", "replace").decode()
    return {"error": {**fault, "status": status_of(error).status}, "request_id": request_id}
