"""What a request may ask for. `GET /info` and docs/api.md state all of it."""

from __future__ import annotations

MAX_REQUEST_BYTES = 6 * 1024 * 1024
"""Maximum size of a body: Lambda's limit for a whole event (AWS Lambda Developer Guide, "Lambda quotas")."""

MAX_RESPONSE_BYTES = 6 * 1024 * 1024 - 4096
"""Maximum size of a response's body as the string that it becomes in Lambda's result, less what wraps it there."""

MAX_TEXTS = 2048
"""Maximum texts of a request, as OpenAI has it (API reference, "Create embeddings")."""

MAX_TEXT_CHARACTERS = 1 << 20
"""Maximum characters of a text. One word of this length, which is tokenized whole, takes half a second."""

MAX_TOKEN_IDS = 8192
"""Maximum token ids in an array, as OpenAI's models read them; beyond this model's maximum they are cut as text is."""

BYTES_PER_NUMBER = 14
"""Upper estimate for one component as shortest float32 decimal with its comma; measured vectors take 12 to 13."""

BYTES_PER_VECTOR = 80
"""Upper estimate of what stands around a vector, its quotation marks counted twice, since they are escaped."""

ENCODINGS = ("float", "base64")
"""A vector as an array of numbers, or as base64 of little-endian float32."""


def max_texts(dimensions: int, encoding: str = "float") -> int:
    """How many vectors of a number of dimensions are allowed in one response and surely fit into it.

    >>> max_texts(384), max_texts(384, "base64")
    (1152, 2048)
    """
    size = -(-4 * dimensions // 3) * 4 if encoding == "base64" else dimensions * BYTES_PER_NUMBER
    return min(MAX_TEXTS, MAX_RESPONSE_BYTES // (size + BYTES_PER_VECTOR))


def escaped_size(body: bytes) -> int:
    """Bytes that a JSON body takes as a JSON string."""
    return len(body) + body.count(b'"') + body.count(b"\\")
