"""Checks of decoded JSON, with the field and the value in the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handler.errors import InvalidRequestError, TooLargeError
from handler.limits import MAX_TEXTS


def check_object(data: Any, example: str) -> None:
    """Raise InvalidRequestError unless the decoded JSON is an object."""
    if not isinstance(data, dict):
        raise InvalidRequestError(f"the request is {kind(data)}, not an object like {example}")


def check_fields(data: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise InvalidRequestError that names the first unknown field, and the known ones."""
    for field in data:
        if field not in known:
            raise InvalidRequestError(f"unknown field {shorten(field)}: the fields are {', '.join(known)}", field[:80])


def option(
    data: Mapping[str, Any], field: str, expected: type, default: Any, values: Sequence[Any] | None = None
) -> Any:
    """An optional field's value, or `default` where it is absent or null.

    Raises InvalidRequestError if it is not of the type, or not one of `values`.
    """
    value = data.get(field)
    if value is None:
        return default
    names = {bool: "a boolean", str: "a string", int: "a whole number"}
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise InvalidRequestError(f"{field} is {kind(value)}, not {names[expected]}", field)
    if values is not None and value not in values:
        allowed = " or ".join(values) if values else "null: this model does not support it"
        raise InvalidRequestError(f"{field} is {shorten(value)}, not {allowed}", field)
    return value


def texts_of(data: Mapping[str, Any], field: str) -> list[str]:
    """A field's list of at least one string. Raises InvalidRequestError."""
    texts = data[field]
    if not isinstance(texts, list):
        raise InvalidRequestError(f"{field} is {kind(texts)}, not a list of strings", field)
    if not texts:
        raise InvalidRequestError(f"{field} is empty: send at least one string", field)
    if len(texts) > MAX_TEXTS:
        raise TooLargeError(f"{field} has {len(texts)} texts, the limit is {MAX_TEXTS}: send several requests", field)
    for index, text in enumerate(texts):
        check_text(text, f"{field}[{index}]")
    return texts


def check_text(text: Any, field: str) -> None:
    """Raise InvalidRequestError unless a value is a string."""
    if not isinstance(text, str):
        raise InvalidRequestError(f"{field} is {kind(text)}, not a string", field)


def kind(value: Any) -> str:
    """The name of a JSON value in messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if type(value) in names:
        return names[type(value)]
    return f"the number {shorten(value)}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def shorten(value: object) -> str:
    """An ASCII literal of at most 80 characters, safe to put into any message."""
    literal = ascii(value)
    return literal if len(literal) <= 80 else literal[:77] + "..."
