"""What is asked for and what is answered: `POST /embed` in our form and in text-embeddings-inference's.

The latter: huggingface/text-embeddings-inference, `docs/openapi.json`, schemas EmbedRequest and EmbedResponse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from handler.errors import InvalidRequestError, ModelNotFoundError, TextTooLongError, TooLargeError
from handler.limits import ENCODINGS, MAX_TEXT_CHARACTERS, MAX_TEXTS, MAX_TOKEN_IDS, max_texts

if TYPE_CHECKING:
    from handler.artifact import Manifest
    from handler.embedder import Embedder, Tokens, Vectors

COUNTED_CHARACTERS = 1 << 18
"""Of a text that must not be cut: so many are tokenized to say how many tokens it has."""


class Outcome(NamedTuple):
    """What a request's texts have become."""

    vectors: Vectors | list[str]
    """float32 of shape (n, dimensions), or n strings of base64."""
    tokens: int
    """Tokens embedded, of all texts together, special tokens included."""
    truncated: list[int]
    """Indices of the texts that were cut."""
    manifest: Manifest
    latency: float
    """Seconds."""


class EmbedRequest(NamedTuple):
    """Texts, what is wanted of them, and the form of the answer."""

    texts: list[str]
    field: str
    """The field that they came in, for messages."""
    render: Callable[[Outcome], Any]
    """The response object."""
    encoding: str = "float"
    normalize: bool | None = None
    """None for what the model does."""
    truncate: bool = True
    token_ids: list[list[int]] | None = None
    """Instead of texts, where a client has tokenized them."""
    dimensions: int | None = None
    """How many the client expects."""
    model: str | None = None
    """Which the client expects."""

    def check(self, manifest: Manifest) -> None:
        """Compare with what the model is, and with the limits of texts and of its vectors.

        Raises ModelNotFoundError, InvalidRequestError, TooLargeError.
        """
        if self.model is not None:
            check_model(self.model, manifest)
        dimensions = manifest.dimensions
        if self.dimensions not in (None, dimensions):
            raise InvalidRequestError(
                f"dimensions is {self.dimensions}: this model's vectors have {dimensions}, and cannot be shortened",
                "dimensions",
            )
        count = len(self.texts if self.token_ids is None else self.token_ids)
        limit = max_texts(dimensions, self.encoding)
        if count > limit:
            more = max_texts(dimensions, "base64")
            hint = "" if self.encoding == "base64" else f", or of {more} with encoding_format base64"
            raise TooLargeError(
                f"{self.field} has {count} texts; a response holds the vectors of {limit}{hint}: send several requests",
                self.field,
            )
        for index, ids in enumerate(self.token_ids or ()):
            if len(ids) > MAX_TOKEN_IDS:
                raise TooLargeError(
                    f"{self.name(index)} has {len(ids)} token ids, the limit is {MAX_TOKEN_IDS}: send it in parts",
                    self.name(index),
                )
        for index, text in enumerate(self.texts):
            if len(text) > MAX_TEXT_CHARACTERS:
                raise TooLargeError(
                    f"{self.name(index)} has {len(text)} characters, the limit is {MAX_TEXT_CHARACTERS}: "
                    "send it in parts",
                    self.name(index),
                )

    def check_lengths(self, tokens: Tokens, max_tokens: int) -> None:
        """Raise TextTooLongError, with the token count of each text, if some would have to be cut and must not be."""
        if self.truncate or not (cut := tokens.truncated):
            return
        counts = ", ".join(f"{self.name(index)} has {tokens.counts[index]}" for index in cut)
        raise TextTooLongError(
            f"the model reads {max_tokens} tokens of a text, special tokens included, and truncate is false: {counts}",
            self.name(cut[0]),
        )

    def tokens(self, embedder: Embedder, deadline: float | None) -> tuple[Tokens, list[str]]:
        """The tokens of the texts, and the texts; of token ids those that they stand for, of a long one its beginning.

        Raises InvalidRequestError if token ids are not this model's, TooManyTokensError past the deadline, a value of
        `time.monotonic()`.
        """
        if self.token_ids is None:
            return embedder.tokenize(self.texts, None if self.truncate else COUNTED_CHARACTERS, deadline), self.texts
        tokens, texts = embedder.tokens_of(self.token_ids, deadline)
        if len(texts) < len(self.token_ids):
            raise InvalidRequestError(
                f"{self.field} holds token ids that are not this model's (array {len(texts)}): send text. LangChain's "
                "OpenAIEmbeddings does so with check_embedding_ctx_length=False",
                self.field,
            )
        return tokens, texts

    def name(self, index: int) -> str:
        """What messages call a text."""
        return f"{self.field}[{index}]" if self.field in ("texts", "inputs", "input") else self.field


def parse(data: Any) -> EmbedRequest:
    """Check the decoded JSON of a `POST /embed`, or of a direct invocation.

    Raises InvalidRequestError that names the field and the value.
    """
    check_object(data, '{"text": "..."}')
    if "input" in data:
        raise InvalidRequestError("input belongs to POST /v1/embeddings: send text or texts to POST /embed", "input")
    form = [field for field in _FIELDS if field in data]
    check_fields(data, _FIELDS[form[0]] if form else _FIELDS["text"])
    if len(form) != 1:
        raise InvalidRequestError('send either "text" with a string or "texts" with a list of strings')
    options = {
        "encoding": option(data, "encoding_format", str, "float", ENCODINGS),
        "normalize": option(data, "normalize", bool, None),
        "truncate": option(data, "truncate", bool, True),
    }
    if form == ["inputs"]:
        option(data, "truncation_direction", str, "right", ("right", "Right"))
        option(data, "prompt_name", str, None, ())
        options["dimensions"] = option(data, "dimensions", int, None)
        texts = data["inputs"]
        return EmbedRequest([texts] if isinstance(texts, str) else texts_of(data, "inputs"), "inputs", _rows, **options)
    if form == ["text"]:
        check_text(data["text"], "text")
        return EmbedRequest([data["text"]], "text", _one, **options)
    return EmbedRequest(texts_of(data, "texts"), "texts", _several, **options)


_OPTIONS = ("encoding_format", "normalize", "truncate")
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "texts", *_OPTIONS),
    "texts": ("text", "texts", *_OPTIONS),
    "inputs": ("inputs", "normalize", "truncate", "truncation_direction", "prompt_name", "dimensions"),
}
"""What a request with this field may have."""


def _one(outcome: Outcome) -> dict[str, Any]:
    return {"embedding": outcome.vectors[0], **_common(outcome)}


def _several(outcome: Outcome) -> dict[str, Any]:
    common = _common(outcome)
    return {"embeddings": outcome.vectors, "count": len(outcome.vectors), **common}


def _rows(outcome: Outcome) -> Any:
    return outcome.vectors


def _common(outcome: Outcome) -> dict[str, Any]:
    return {
        "model": outcome.manifest.model,
        "dimensions": outcome.manifest.dimensions,
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "latency": outcome.latency,
    }


def encode(vectors: Vectors, encoding: str) -> Vectors | list[str]:
    """Vectors as they travel: as they are for the JSON writer, or each as base64 of little-endian float32."""
    if encoding == "float":
        return vectors
    import binascii

    return [binascii.b2a_base64(row.tobytes(), newline=False).decode() for row in vectors.astype("<f4", copy=False)]


def check_model(name: str, manifest: Manifest) -> None:
    """Raise ModelNotFoundError unless this is the model's id, or the part of it after the organization."""
    if name not in (manifest.model, manifest.model.rpartition("/")[2]):
        raise ModelNotFoundError(
            f"the model {shorten(name)} is not served here: set model to {manifest.model}", "model"
        )


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
        allowed = " or ".join(values) if values else "null: this model has no such thing"
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
    """What a message calls a JSON value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if type(value) in names:
        return names[type(value)]
    return f"the number {shorten(value)}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def shorten(value: object) -> str:
    """An ASCII literal of at most 80 characters, safe to put into any message."""
    literal = ascii(value)
    return literal if len(literal) <= 80 else literal[:77] + "..."
