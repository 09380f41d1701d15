"""A request for vectors and its outcome, whatever their form in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from handler.errors import InvalidRequestError, ModelNotFoundError, TextTooLongError, TooLargeError
from handler.limits import ENCODINGS, MAX_TEXT_CHARACTERS, MAX_TOKEN_IDS, max_texts
from handler.validation import option, shorten, truncate_option

if TYPE_CHECKING:
    from artifact.manifest import Manifest
    from handler.embedder import Embedder, Tokens, Vectors

COUNTED_CHARACTERS = 1 << 18
"""Maximum characters that are tokenized to count the tokens of a text that must not be cut."""


class Outcome(NamedTuple):
    """The vectors of a request, and what an answer says about them."""

    vectors: Vectors | list[str]
    """float32 of shape (n, dimensions), or n strings of base64."""
    tokens: int
    """Tokens embedded, of all texts together, special tokens included."""
    truncated: list[int]
    """Indices of the texts that were cut."""
    manifest: Manifest
    latency: float
    """Seconds from the start of the request until the vectors were done."""


class EmbedRequest(NamedTuple):
    """Texts, options, and the form of the answer."""

    texts: list[str]
    field: str
    """The field that holds the texts, for messages."""
    render: Callable[[Outcome], Any]
    """Makes the response object."""
    encoding: str = "float"
    normalize: bool | None = None
    """Whether to make unit vectors; None for what the model does."""
    truncate: bool = True
    token_ids: list[list[int]] | None = None
    """Instead of texts, where a client has tokenized them."""
    cut_at: int | None = None
    """Tokens at which the client expects texts to be cut; None or -1 for the model's maximum."""
    sizes: Mapping[str, int] = {}
    """Fields that say how many dimensions the client expects."""
    model: str | None = None
    """Which the client expects."""
    ignored: tuple[str, ...] = ()
    """Names of fields that change nothing here."""

    def check(self, manifest: Manifest) -> None:
        """Compare the request with the model, and with the limits of texts and vectors.

        Raises ModelNotFoundError, InvalidRequestError, TooLargeError.
        """
        if self.model is not None:
            check_model(self.model, manifest)
        dimensions = manifest.dimensions
        for field, size in self.sizes.items():
            if size != dimensions:
                raise InvalidRequestError(
                    f"{field} is {shorten(size)}: this model's vectors have {dimensions}, and cannot be shortened",
                    field,
                )
        if self.cut_at not in (None, -1) and self.cut_at < manifest.max_tokens:
            raise InvalidRequestError(
                f"truncate_prompt_tokens is {shorten(self.cut_at)}: texts are cut at the model's {manifest.max_tokens} "
                "tokens and nowhere else; leave it out, and send shorter texts",
                "truncate_prompt_tokens",
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
        """Raise TextTooLongError, with token counts, if texts are too long and the request forbids cutting them."""
        if self.truncate or not (cut := tokens.truncated):
            return
        counts = ", ".join(f"{self.name(index)} has {tokens.counts[index]}" for index in cut)
        raise TextTooLongError(
            f"the model reads {max_tokens} tokens of a text, special tokens included, and truncate is false: {counts}",
            self.name(cut[0]),
        )

    def tokens(self, embedder: Embedder, deadline: float | None) -> tuple[Tokens, list[str]]:
        """The tokens and the texts. Token ids are turned into the texts they stand for (the beginning of long ones).

        `deadline` is a value of `time.monotonic()`.
        Raises InvalidRequestError if token ids are not this model's, TooManyTokensError past the deadline.
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
        """The name of a text in messages."""
        return f"{self.field}[{index}]" if self.field in ("texts", "inputs", "input") else self.field


SIZES = ("dimensions", "output_dimension", "truncate_dim")
"""What OpenAI and text-embeddings-inference, Voyage and Mistral, and sentence-transformers call the dimensions."""
OPTIONS = ("encoding_format", "normalize", "truncate", "truncate_prompt_tokens", *SIZES)


def options_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of EmbedRequest for the OPTIONS of a decoded request. Raises InvalidRequestError."""
    sizes = {field: option(data, field, int, None) for field in SIZES if data.get(field) is not None}
    return {
        "encoding": option(data, "encoding_format", str, "float", ENCODINGS),
        "normalize": option(data, "normalize", bool, None),
        "truncate": truncate_option(data),
        "cut_at": option(data, "truncate_prompt_tokens", int, None),
        "sizes": sizes,
    }


def encode(vectors: Vectors, encoding: str) -> Vectors | list[str]:
    """Vectors in the encoding of the answer: unchanged for `float`, else each as base64 of little-endian float32."""
    if encoding == "float":
        return vectors
    import binascii

    return [binascii.b2a_base64(row.tobytes(), newline=False).decode() for row in vectors.astype("<f4", copy=False)]


def check_model(name: str, manifest: Manifest) -> None:
    """Raise ModelNotFoundError unless this ends, after its last slash and in any case, as the model's id does.

    Routers leave their own prefixes before it, such as `openai/` and `hosted_vllm/`.
    """
    if name.rpartition("/")[2].lower() != manifest.model.rpartition("/")[2].lower():
        raise ModelNotFoundError(
            f"the model {shorten(name)} is not served here: set model to {manifest.model}", "model"
        )
