"""Checks of decoded JSON, with the field and the value in the message."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from handler.errors import InvalidRequestError, TooLargeError
from handler.limits import MAX_TEXTS


def check_object(data: Any, example: str) -> None:
    """Raise InvalidRequestError unless the decoded JSON is an object."""
    if not isinstance(data, dict):
        raise InvalidRequestError(f"the request is {kind(data)}, not an object like {example}")


def ignored_fields(data: Mapping[str, Any], known: Collection[str]) -> tuple[str, ...]:
    """The fields that are not among the known ones and change nothing.

    Raises InvalidRequestError if one of them has a value with which the service that knows it gives other vectors.
    """
    found = []
    for field, value in data.items():
        if field in known:
            continue
        if field not in VECTOR_FIELDS:
            found.append(field)
        elif value is not None and not any(
            type(value) is type(same) and value == same for same in VECTOR_FIELDS[field]
        ):
            same = " or ".join(
                shorten(each) if isinstance(each, list) else quoted(each) for each in VECTOR_FIELDS[field]
            )
            raise InvalidRequestError(
                f"{field} is {quoted(value)}, not {same or 'null'}: that asks for other vectors than are served here; "
                "leave it out",
                field,
            )
    return tuple(found)


VECTOR_FIELDS: Mapping[str, tuple[Any, ...]] = {
    # text-embeddings-inference and sentence-transformers
    "instruction": ("",),
    "truncation_direction": ("right", "Right"),
    # vLLM
    "add_special_tokens": (True,),
    "truncation_side": ("right",),
    "use_activation": (True,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    # Jina, Voyage, Mistral, Cohere
    "late_chunking": (False,),
    "normalized": (True,),
    "truncation": (True,),
    "output_dtype": ("float",),
    "embedding_type": ("float",),
    "embedding_types": (["float"],),
}
"""Field that changes vectors elsewhere and not here -> its values, beside null, that ask for the vectors of here."""


def check_spelling(field: str, names: Sequence[str]) -> None:
    """Raise InvalidRequestError if an unknown field is nearly one of the names, and so perhaps meant to be it."""
    import difflib  # here, because few requests have unknown fields

    spelt = field[:40].lower()
    near = difflib.get_close_matches(spelt, names, 1, NEAR)
    near += [name for name in names if len(spelt) >= 4 and name.startswith(spelt)]
    near += [name for name in names if len(name) >= 8 and spelt.startswith(name)]
    if near:
        raise InvalidRequestError(
            f"unknown field {shorten(field)}: did you mean {near[0]}? The fields are {', '.join(names)}", field[:80]
        )


NEAR = 0.75
"""Of difflib's ratio, from which a name is a near miss: a letter missing in `text`, two others in `normalize`."""


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
        raise InvalidRequestError(f"{field} is {shorten(value)}, not {' or '.join(values)}", field)
    return value


def truncate_option(data: Mapping[str, Any]) -> bool:
    """The field `truncate`, as a boolean or in Cohere's and NVIDIA's words. Raises InvalidRequestError."""
    value = data.get("truncate")
    if value == "START":
        raise InvalidRequestError(
            "truncate is 'START': texts are cut at their end; send true, END or false", "truncate"
        )
    if value is None or value is True or value == "END":
        return True
    if value is False or value == "NONE":
        return False
    raise InvalidRequestError(f"truncate is {quoted(value)}, not true, false, NONE or END", "truncate")


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


def either(names: Sequence[str]) -> str:
    """At least one name, as a message lists what works: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def kind(value: Any) -> str:
    """The name of a JSON value in messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if type(value) in names:
        return names[type(value)]
    return f"the number {shorten(value)}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """A JSON value as a message quotes it, or what it is where it may be long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return shorten(value) if isinstance(value, str) else kind(value)


def shorten(value: object) -> str:
    """An ASCII literal of at most 80 characters, safe to put into any message."""
    literal = ascii(value)
    return literal if len(literal) <= 80 else literal[:77] + "..."
