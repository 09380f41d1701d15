"""Limits of a request. `GET /info` and docs/api.md state all of them."""

from __future__ import annotations

MAX_REQUEST_BYTES = 6 * 1024 * 1024
"""Maximum size of a body: Lambda's limit for a whole event (AWS Lambda Developer Guide, "Lambda quotas")."""

MAX_RESPONSE_BYTES = 6 * 1024 * 1024 - 4096
"""Maximum size of a response's body, escaped as a JSON string: Lambda's limit less 4 KB for what surrounds it."""

MAX_TEXTS = 2048
"""Maximum texts of a request, as OpenAI has it (API reference, "Create embeddings")."""

MAX_TEXT_CHARACTERS = 1 << 20
"""Maximum characters of a text. One word of this length, which is tokenized whole, takes half a second."""

MAX_PROMPT_CHARACTERS = 4096
"""Maximum characters of a prompt, which goes before every text."""

MAX_TOKEN_IDS = 8192
"""Maximum token ids in an array: what OpenAI's models read. Like text, they are cut at this model's maximum."""

BYTES_PER_NUMBER = 14
"""Upper estimate of a component's bytes: its shortest float32 decimal and a comma. Measured vectors take 12 to 13."""

BYTES_PER_VECTOR = 80
"""Upper estimate of the bytes around a vector; quotation marks count twice, since they are escaped."""

ENCODINGS = ("float", "base64")
"""Forms of a vector: an array of numbers, or base64 of little-endian float32."""


def max_texts(dimensions: int, encoding: str = "float") -> int:
    """Maximum vectors of a response: as many as are allowed and are sure to fit.

    >>> max_texts(384), max_texts(384, "base64")
    (1152, 2048)
    """
    size = -(-4 * dimensions // 3) * 4 if encoding == "base64" else dimensions * BYTES_PER_NUMBER
    return min(MAX_TEXTS, MAX_RESPONSE_BYTES // (size + BYTES_PER_VECTOR))


def escaped_size(body: bytes) -> int:
    """Bytes that a JSON body takes as a JSON string."""
    return len(body) + body.count(b'"') + body.count(b"\\")
