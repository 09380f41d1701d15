"""The contract of `POST /embed` and of direct invocations: request objects in, response objects out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from handler.errors import InvalidRequestError, TooLargeError

if TYPE_CHECKING:
    from handler.artifact import Manifest
    from handler.embedder import Embeddings

MAX_BODY_BYTES = 6 * 1024 * 1024 - 4096
"""Lambda's limit for a buffered response (AWS Lambda Developer Guide, "Lambda quotas"), less what wraps the body."""

BYTES_PER_NUMBER = 14
"""Upper estimate for one component as shortest float32 decimal with its comma; measured vectors take 12 to 13."""


class EmbedRequest(NamedTuple):
    """`{"text": "..."}` or `{"texts": ["...", ...]}`."""

    texts: list[str]
    single: bool

    @classmethod
    def parse(cls, data: Any) -> EmbedRequest:
        """Check the decoded JSON of a request.

        Raises InvalidRequestError that names the field and the value.
        """
        if not isinstance(data, dict):
            raise InvalidRequestError(f'the request is {_kind(data)}, not an object like {{"text": "..."}}')
        for field in data:
            if field not in ("text", "texts"):
                raise InvalidRequestError(f"unknown field {_shorten(field)}: send text or texts", field)
        if len(data) != 1:
            raise InvalidRequestError('send either "text" with a string or "texts" with a list of strings')
        if "text" in data:
            _check_text(data["text"], "text")
            return cls([data["text"]], single=True)
        texts = data["texts"]
        if not isinstance(texts, list):
            raise InvalidRequestError(f"texts is {_kind(texts)}, not a list of strings", "texts")
        if not texts:
            raise InvalidRequestError("texts is empty: send at least one string", "texts")
        for index, text in enumerate(texts):
            _check_text(text, f"texts[{index}]")
        return cls(texts, single=False)

    def check_fits(self, dimensions: int) -> None:
        """Raise TooLargeError, before any work is spent, if the vectors of these texts would not fit the response."""
        limit = max_texts(dimensions)
        if len(self.texts) > limit:
            raise TooLargeError(
                f"texts has {len(self.texts)} strings, and a response body of {MAX_BODY_BYTES} bytes holds "
                f"the vectors of {limit}: send them in several requests",
                "texts",
            )


def max_texts(dimensions: int) -> int:
    """How many vectors of that many dimensions surely fit into one response.

    >>> max_texts(384)
    1169
    """
    return MAX_BODY_BYTES // (dimensions * BYTES_PER_NUMBER + 2)


def embed_response(request: EmbedRequest, result: Embeddings, manifest: Manifest, latency: float) -> dict[str, Any]:
    """The response object; vectors stay float32 arrays for the JSON writer. `latency` is in seconds."""
    common = {"model": manifest.model, "dimensions": manifest.dimensions}
    if request.single:
        return {"embedding": result.vectors[0], **common, "latency": latency}
    return {"embeddings": result.vectors, **common, "count": len(request.texts), "latency": latency}


def _check_text(text: Any, field: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"{field} is {_kind(text)}, not a string", field)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if type(value) in names:
        return names[type(value)]
    return f"the number {value}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def _shorten(value: object) -> str:
    """An ASCII literal of at most 80 characters, safe to put into any message."""
    literal = ascii(value)
    return literal if len(literal) <= 80 else literal[:77] + "..."
