"""A request for vectors and its outcome, whatever their form in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from handler.errors import InvalidRequestError, ModelNotFoundError, TextTooLongError, TooLargeError
from handler.limits import ENCODINGS, MAX_PROMPT_CHARACTERS, MAX_TEXT_CHARACTERS, MAX_TOKEN_IDS, max_texts
from handler.validation import check_text, either, option, shorten, truncate_option

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
    dimensions: int
    """Of each vector."""
    latency: float
    """Seconds from the start of the request until the vectors were done."""
    warnings: tuple[str, ...]
    """What the client should know of the vectors."""


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
    prompts: Mapping[str, Any] = {}
    """Fields that say what goes before every text; no one has checked yet what they hold."""
    model: str | None = None
    """Which the client expects."""
    ignored: tuple[str, ...] = ()
    """Names of fields that change nothing here."""

    def check(self, manifest: Manifest) -> int:
        """Compare the request with the model, and with the limits of texts and vectors.

        Returns how many dimensions the vectors shall have.
        Raises ModelNotFoundError, InvalidRequestError, TooLargeError.
        """
        if self.model is not None:
            check_model(self.model, manifest)
        dimensions = _size_of(self.sizes, manifest) if self.sizes else manifest.dimensions
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
        return dimensions

    def prompt(self, manifest: Manifest) -> str | None:
        """What goes before every text; None for the model's default prompt.

        Raises InvalidRequestError if a field does not name a prompt of the model, or two ask for different ones;
        TooLargeError.
        """
        found: str | None = None
        for field, value in self.prompts.items():
            prompt = _prompt_of(field, value, manifest)
            if prompt is None:
                continue
            if found not in (None, prompt):
                names = " and ".join(self.prompts)
                raise InvalidRequestError(f"{names} ask for different prompts: send one of them", field)
            if prompt and self.token_ids is not None:
                raise InvalidRequestError(
                    f"{self.field} holds token ids, before which no prompt is put: send text, or the ids of text that "
                    f"has its prompt, without {field}",
                    field,
                )
            found = prompt
        return found

    def warnings(self, manifest: Manifest) -> tuple[str, ...]:
        """What the client should know of the vectors of a model with prompts. Token ids may have one among them."""
        if self.prompts or manifest.default_prompt is not None or self.token_ids is not None:
            return ()
        return (_NO_PROMPT,)

    def check_lengths(self, tokens: Tokens, max_tokens: int) -> None:
        """Raise TextTooLongError, with token counts, if texts are too long and the request forbids cutting them."""
        if self.truncate or not (cut := tokens.truncated):
            return
        counts = ", ".join(f"{self.name(index)} has {tokens.counts[index]}" for index in cut)
        raise TextTooLongError(
            f"the model reads {max_tokens} tokens of a text, special tokens included, and truncate is false: {counts}",
            self.name(cut[0]),
        )

    def tokens(self, embedder: Embedder, prompt: str | None, deadline: float | None) -> tuple[Tokens, list[str]]:
        """The tokens and the texts. Token ids are turned into the texts they stand for (the beginning of long ones).

        `prompt` is as in `Embedder.tokenize`; token ids get none. `deadline` is a value of `time.monotonic()`.
        Raises InvalidRequestError if token ids are not this model's, TooManyTokensError past the deadline.
        """
        if self.token_ids is None:
            counted = None if self.truncate else COUNTED_CHARACTERS
            return embedder.tokenize(self.texts, counted, deadline, prompt), self.texts
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
PROMPTS = ("prompt", "prompt_name", "input_type")
"""What goes before every text, its name in sentence-transformers and text-embeddings-inference, and NVIDIA's, Voyage's
and Cohere's word for what the texts are."""
OPTIONS = ("encoding_format", "normalize", "truncate", "truncate_prompt_tokens", *SIZES, *PROMPTS)
_INPUT_TYPES = ("query", "passage", "document", "search_query", "search_document")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Names that models give the prompt of documents, in the order of sentence-transformers' `encode_document`."""
_NO_PROMPT = (
    "the model has prompts and the request names none: send prompt_name or input_type, or an empty prompt if there "
    "shall be none; GET /info lists them"
)


def options_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of EmbedRequest for the OPTIONS of a decoded request. Raises InvalidRequestError."""
    prompts = {field: data[field] for field in PROMPTS if data.get(field) is not None}
    sizes = {field: option(data, field, int, None) for field in SIZES if data.get(field) is not None}
    return {
        "encoding": option(data, "encoding_format", str, "float", ENCODINGS),
        "normalize": option(data, "normalize", bool, None),
        "truncate": truncate_option(data),
        "cut_at": option(data, "truncate_prompt_tokens", int, None),
        "sizes": sizes,
        "prompts": prompts,
    }


def _size_of(sizes: Mapping[str, int], manifest: Manifest) -> int:
    """The dimensions that fields of SIZES, at least one, ask for. Raises InvalidRequestError."""
    whole, smaller = manifest.dimensions, manifest.matryoshka_dimensions
    for field, size in sizes.items():
        if size != whole and size not in smaller:
            has = (
                f"{either([*map(str, (whole, *smaller))])} dimensions"
                if smaller
                else f"{whole}, and cannot be shortened"
            )
            raise InvalidRequestError(f"{field} is {shorten(size)}: this model's vectors have {has}", field)
    if len({*sizes.values()}) > 1:
        raise InvalidRequestError(f"{' and '.join(sizes)} ask for different sizes: send one of them", field)
    return size


def _prompt_of(field: str, value: Any, manifest: Manifest) -> str | None:
    """The prompt that a field of PROMPTS asks for; None if it changes nothing.

    Raises InvalidRequestError, TooLargeError.
    """
    prompts = manifest.prompts
    if field == "input_type" and not prompts:
        return None
    check_text(value, field)
    if not prompts and (field, value) != ("prompt", ""):
        raise InvalidRequestError(
            f"{field} is {shorten(value)}: this model has no prompts; leave it out, or send texts that begin with one",
            field,
        )
    if field == "prompt":
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise TooLargeError(
                f"prompt has {len(value)} characters, the limit is {MAX_PROMPT_CHARACTERS}: send a shorter one", field
            )
        return str(value)
    if field == "input_type" and value in _INPUT_TYPES:
        return _prompt_of_type(value.removeprefix("search_"), prompts)
    if value in prompts:
        return prompts[value]
    known = list(dict.fromkeys((*(_INPUT_TYPES if field == "input_type" else ()), *sorted(prompts))))
    raise InvalidRequestError(f"{field} is {shorten(value)}, not {either(known)}", field)


def _prompt_of_type(kind: str, prompts: Mapping[str, str]) -> str:
    """The model's prompt for queries, passages or documents, "" if it has none.

    An empty one does not count: sentence-transformers adds `document` to models that call it `passage`.
    """
    names = (kind,) if kind == "query" else (kind, *_DOCUMENT_PROMPTS)
    return next((prompts[name] for name in names if prompts.get(name)), "")


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
