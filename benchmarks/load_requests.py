"""The requests of the load benchmark, seeded, and what the answer to each must be."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from export.texts import HOSTILE, ORDINARY
from handler.embedder import Embedder
from handler.limits import MAX_REQUEST_BYTES, MAX_TEXT_CHARACTERS, MAX_TEXTS, max_texts

ANSWER_SECONDS = 60.0
"""Seconds after which a request counts as unanswered. Lambda's own timeout is 30 s here, without waiting."""
LARGE_EVERY, LARGE_FIRST = 1000, 50
"""One request in LARGE_EVERY is large, at first number LARGE_FIRST. Others wait a second for some of these. The memory
that Python keeps after them settles after a dozen, which should be within the first quarter of a run."""


class WrongAnswerError(Exception):
    """`what` is wrong with an answer in two or three words, by which it is counted; the message has the values."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class Answer(NamedTuple):
    """What the client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, status: int) -> Any:
        """The decoded body. Raises WrongAnswerError unless status and type are right."""
        shown = self.body[:200].decode(errors="replace")
        if self.status != status:
            raise WrongAnswerError("wrong status", f"{self.status} and not {status}: {shown}")
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise WrongAnswerError("not JSON", f"{error}: {shown}") from error


@dataclass(frozen=True)
class Pool:
    """The texts that are sent, and what the library makes of them; row i belongs to text i."""

    unit: npt.NDArray[np.float32]
    """Shape (n, dimensions), rows of norm 1."""
    raw: npt.NDArray[np.float32]
    """The same without normalization."""
    tokens: Sequence[int]
    truncated: frozenset[int]
    model: str
    version: str
    """Of the artifact."""

    @classmethod
    def load(cls, model_folder: Path) -> Pool:
        """Embed TEXTS."""
        embedder = Embedder.load(model_folder)
        tokens = embedder.tokenize(TEXTS)
        unit, raw = (embedder.embed_tokens(tokens.ids, normalize) for normalize in (True, False))
        manifest = embedder.manifest
        lengths = [len(ids) for ids in tokens.ids]
        return cls(unit, raw, lengths, frozenset(tokens.truncated), manifest.model, manifest.version)


class Expected(Protocol):
    """What a request must be answered with."""

    @property
    def handled(self) -> bool:
        """Whether the function sees the request, gives its answer an id and logs it."""

    def check(self, answer: Answer, pool: Pool) -> None:
        """Raise WrongAnswerError if the answer is another one."""


@dataclass(frozen=True)
class Vectors:
    """These rows of the pool, to the bit, in the form that belongs to the request's `field`."""

    field: str
    rows: Sequence[int]
    encoding: str = "float"
    normalize: bool = True
    handled: bool = True

    def check(self, answer: Answer, pool: Pool) -> None:
        data = answer.json(200)
        try:
            found, rest = _take_vectors(self.field, data)
            vectors = np.array([_decode(vector, self.encoding) for vector in found], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise WrongAnswerError("wrong form", f"{error!r}: {answer.body[:200]!r}") from error
        if rest != (right := self._rest(pool)):
            raise WrongAnswerError("wrong field", f"{rest} and not {right}")
        cut = len(self._truncated(pool))
        if answer.headers.get("x-truncated-texts", "0") != str(cut):
            raise WrongAnswerError("wrong header", f"x-truncated-texts is not {cut}")
        wanted = (pool.unit if self.normalize else pool.raw)[list(self.rows)]
        if vectors.shape != wanted.shape:
            raise WrongAnswerError("wrong form", f"vectors of shape {vectors.shape} and not {wanted.shape}")
        wrong = (vectors.view(np.uint32) != wanted.view(np.uint32)).any(axis=1)
        if wrong.any():
            place = int(np.argmax(wrong))
            apart = float(np.abs(vectors[place] - wanted[place]).max())
            text = TEXTS[self.rows[place]][:40]
            message = f"{wrong.sum()} of {len(wrong)}, the first for text {place}, {text!a}, {apart:.2g} off at most"
            raise WrongAnswerError("wrong vector", message)

    def _rest(self, pool: Pool) -> dict[str, Any]:
        """All of the answer but vectors and latency."""
        tokens, truncated = sum(pool.tokens[row] for row in self.rows), self._truncated(pool)
        if self.field == "inputs":
            return {}
        if self.field == "input":
            rest = {"object": "list", "model": pool.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
            return rest | ({"truncated": truncated} if truncated else {})
        count = {"count": len(self.rows)} if self.field == "texts" else {}
        dimensions = pool.unit.shape[1]
        return {**count, "model": pool.model, "dimensions": dimensions, "tokens": tokens, "truncated": truncated}

    def _truncated(self, pool: Pool) -> list[int]:
        return [place for place, row in enumerate(self.rows) if row in pool.truncated]


def _take_vectors(field: str, data: Any) -> tuple[list[Any], dict[str, Any]]:
    """The vectors of an answer, and the rest of it without the latency. Raises KeyError, TypeError, ValueError."""
    if field == "inputs":
        return list(data), {}
    if field == "input":
        entries = data.pop("data")
        if [(entry["object"], entry["index"]) for entry in entries] != [
            ("embedding", at) for at in range(len(entries))
        ]:
            raise ValueError("data is not a list of embeddings in the order of the texts")
        return [entry["embedding"] for entry in entries], data
    found = [data.pop("embedding")] if field == "text" else data.pop("embeddings")
    if not 0 < data.pop("latency") < ANSWER_SECONDS:
        raise ValueError("latency is no time in seconds")
    return found, data


def _decode(vector: Any, encoding: str) -> npt.NDArray[np.float32]:
    if encoding == "base64":
        return np.frombuffer(base64.b64decode(vector, validate=True), "<f4")
    return np.array(vector, np.float32)


@dataclass(frozen=True)
class Fault:
    """An error of the function, in the one form that all its errors have."""

    status: int
    code: str
    quotes: str = ""
    """What only this request has and its message must name: the answer is not another request's."""
    handled: bool = True

    def check(self, answer: Answer, pool: Pool) -> None:
        data = answer.json(self.status)
        try:
            error, request_id = data["error"], data["request_id"]
            form = sorted(error), sorted(data)
        except (KeyError, TypeError) as problem:
            raise WrongAnswerError("wrong form", f"{problem!r}: {answer.body[:200]!r}") from problem
        if form != (["code", "message", "param", "type"], ["error", "request_id"]):
            raise WrongAnswerError("wrong form", f"the fields are {form}")
        if error["code"] != self.code:
            raise WrongAnswerError("wrong code", f"{error['code']} and not {self.code}: {error['message']}")
        if self.quotes not in error["message"]:
            raise WrongAnswerError("another's answer", f"{self.quotes} is not in: {error['message']}")
        if request_id != answer.headers.get("x-request-id"):
            raise WrongAnswerError("wrong field", f"request_id is {request_id}, unlike the header x-request-id")
        if self.status == 405 and "allow" not in answer.headers:
            raise WrongAnswerError("wrong header", "405 without allow")


@dataclass(frozen=True)
class Refusal:
    """What Lambda itself says of a request over its limit, which the function never sees."""

    handled: bool = False

    def check(self, answer: Answer, pool: Pool) -> None:
        if "must be smaller than" not in str(answer.json(413)):
            raise WrongAnswerError("wrong form", f"not Lambda's refusal: {answer.body[:200]!r}")


@dataclass(frozen=True)
class Page:
    """`GET /health` or `GET /info`: what is certain of it."""

    fields: Callable[[Pool], Mapping[str, Any]]
    handled: bool = True

    def check(self, answer: Answer, pool: Pool) -> None:
        data, right = answer.json(200), self.fields(pool)
        if not isinstance(data, dict) or right != {name: data.get(name) for name in right}:
            raise WrongAnswerError("wrong field", f"{answer.body[:200]!r} has not {right}")


@dataclass(frozen=True)
class Request:
    """One request and what must come back."""

    method: str
    path: str
    body: bytes
    expected: Expected
    content_type: str = "application/json"


def _generated(count: int, least: int, most: int) -> list[str]:
    """`count` texts of `least` to `most` words; always the same ones."""
    source = random.Random(least)  # noqa: S311  not for secrets
    words = sorted({word for text in ORDINARY for word in text.split()})
    return [" ".join(source.choices(words, k=source.randint(least, most))) for _ in range(count)]


_GROUPS: Mapping[str, Sequence[str]] = {
    "short": _generated(300, 2, 8),
    "medium": _generated(100, 12, 30),
    "long": _generated(50, 60, 200),
    "hostile": HOSTILE,
}
TEXTS: Sequence[str] = [text for texts in _GROUPS.values() for text in texts]
"""All that is embedded, besides the texts that must be refused."""

Make: TypeAlias = Callable[[int, random.Random], Request]
"""Makes a request from its number, which is its id, and random numbers."""


def _rows(source: random.Random, group: str, count: int) -> list[int]:
    names = list(_GROUPS)
    begin = sum(len(_GROUPS[name]) for name in names[: names.index(group)])
    return [begin + source.randrange(len(_GROUPS[group])) for _ in range(count)]


def _post(number: int, path: str, data: Any, expected: Expected) -> Request:
    """As different clients send JSON: escaped or not, and now and then without saying what it is, as curl does."""
    body = json.dumps(data, ensure_ascii=number % 2 == 0).encode()
    kind = "application/x-www-form-urlencoded" if number % 10 == 7 else "application/json"
    return Request("POST", path, body, expected, kind)


def _embed(group: str, least: int = 1, most: int = 1, encoding: str = "float", normalize: bool = True) -> Make:
    """Our own form, with `text` for one text."""

    def make(number: int, source: random.Random) -> Request:
        rows = _rows(source, group, source.randint(least, most))
        field = "text" if len(rows) == 1 else "texts"
        texts = [TEXTS[row] for row in rows]
        data: dict[str, Any] = {field: texts[0] if field == "text" else texts}
        if encoding != "float":
            data["encoding_format"] = encoding
        if not normalize:
            data["normalize"] = False
        return _post(number, "/embed", data, Vectors(field, rows, encoding, normalize))

    return make


def _openai(least: int, most: int, encoding: str = "float") -> Make:
    """OpenAI's form, with a string for one text."""

    def make(number: int, source: random.Random) -> Request:
        rows = _rows(source, "short", source.randint(least, most))
        texts = [TEXTS[row] for row in rows]
        data = {"model": "all-MiniLM-L6-v2", "input": texts[0] if len(rows) == 1 else texts, "user": f"user {number}"}
        if encoding != "float":
            data["encoding_format"] = encoding
        return _post(number, "/v1/embeddings", data, Vectors("input", rows, encoding))

    return make


def _inputs(number: int, source: random.Random) -> Request:
    """text-embeddings-inference's form, on its own route or ours."""
    rows = _rows(source, "short", source.randint(1, 4))
    texts = [TEXTS[row] for row in rows]
    data = {"inputs": texts[0] if len(rows) == 1 else texts, "truncate": True}
    return _post(number, source.choice(("/", "/embed")), data, Vectors("inputs", rows))


def _get(path: str, fields: Callable[[Pool], Mapping[str, Any]]) -> Make:
    return lambda number, source: Request("GET", path, b"", Page(fields))


def _mistake(*mistakes: Callable[[int], Request]) -> Make:
    """One of several."""
    return lambda number, source: source.choice(mistakes)(number)


def _invalid(body: str, path: str = "/embed", code: str = "invalid_request") -> Callable[[int], Request]:
    """Answered with 400. A `NUMBER` in the body becomes the request's own, which the message must name."""

    def make(number: int) -> Request:
        name = f"request-{number}"
        quotes = name if "NUMBER" in body else ""
        return Request("POST", path, body.replace("NUMBER", name).encode(), Fault(400, code, quotes))

    return make


def _absent(method: str, path: str, code: str, data: Mapping[str, Any] | None = None) -> Callable[[int], Request]:
    """Answered with 404; `NUMBER` as above."""

    def make(number: int) -> Request:
        name = f"request-{number}"
        body = b"" if data is None else json.dumps(data).replace("NUMBER", name).encode()
        return Request(method, path.replace("NUMBER", name), body, Fault(404, code, name))

    return make


def _method(method: str, path: str) -> Callable[[int], Request]:
    return lambda number: Request(method, path, b"", Fault(405, "method_not_allowed", method))


def _too_many(count: int) -> Callable[[int], Request]:
    return lambda number: _post(number, "/embed", {"texts": ["x"] * count}, Fault(413, "too_large", str(count)))


def _long_text(number: int, source: random.Random) -> Request:
    size = MAX_TEXT_CHARACTERS + 1
    return Request("POST", "/embed", b'{"text": "%s"}' % (b"x" * size), Fault(413, "too_large", str(size)))


def _large_body(number: int, source: random.Random) -> Request:
    # With what Lambda wraps around it the event is over the limit.
    return Request("POST", "/embed", b'"%s"' % (b"x" * (MAX_REQUEST_BYTES - 100)), Refusal())


_LONG_TEXT = json.dumps(" ".join(["word"] * 300))
_DIMENSIONS = 384
KINDS: Mapping[str, tuple[int, Make]] = {
    "one text of 2 to 8 words": (230, _embed("short")),
    "one text of 12 to 30 words": (80, _embed("medium")),
    "one text of 60 to 200 words": (20, _embed("long")),
    "2 to 8 texts": (70, _embed("short", 2, 8)),
    "base64, 1 to 4 texts": (80, _embed("short", 1, 4, encoding="base64")),
    "normalize: false": (60, _embed("short", 1, 2, normalize=False)),
    "/v1/embeddings, a string": (80, _openai(1, 1)),
    "/v1/embeddings, an array": (50, _openai(2, 6)),
    "/v1/embeddings, base64": (50, _openai(1, 4, encoding="base64")),
    "text-embeddings-inference": (80, _inputs),
    "hostile texts": (60, _embed("hostile", 1, 2)),
    "GET /health": (40, _get("/health", lambda pool: {"status": "ok"})),
    "GET /info": (20, _get("/info", lambda pool: {"model": pool.model, "artifact_version": pool.version})),
    "400": (
        40,
        _mistake(
            _invalid("{"),
            _invalid(""),
            _invalid('"text"'),
            _invalid('{"texts": []}'),
            _invalid('{"texts": ["x", 1]}'),
            _invalid('{"text": null}'),
            _invalid('{"text": "x", "texts": ["x"]}'),
            _invalid('{"text": "x", "normalize_NUMBER": 1}'),
            _invalid('{"text": "x", "encoding_format": "NUMBER"}'),
            _invalid('{"text": "x", "normalize": "yes"}'),
            _invalid('{"inputs": "x", "prompt_name": "NUMBER"}', "/"),
            _invalid('{"inputs": "x", "dimensions": 100}'),
            _invalid(f'{{"text": {_LONG_TEXT}, "truncate": false}}', code="text_too_long"),
            _invalid('{"input": "x"}', "/v1/embeddings"),
            _invalid('{"input": "", "model": "all-MiniLM-L6-v2"}', "/v1/embeddings"),
            _invalid('{"input": [15339, 1917], "model": "all-MiniLM-L6-v2"}', "/v1/embeddings"),
        ),
    ),
    "404": (
        20,
        _mistake(
            _absent("POST", "/NUMBER", "unknown_route"),
            _absent("GET", "/embed/NUMBER", "unknown_route"),
            _absent("GET", "/v1/models/NUMBER", "model_not_found"),
            _absent("POST", "/v1/embeddings", "model_not_found", {"input": "x", "model": "NUMBER"}),
        ),
    ),
    "405": (10, _mistake(_method("GET", "/embed"), _method("PUT", "/v1/embeddings"), _method("DELETE", "/health"))),
    "413": (10, _mistake(_too_many(MAX_TEXTS + 1), _too_many(max_texts(_DIMENSIONS) + 1))),
}
"""Kind -> its number in a thousand requests, and how one is made."""

LARGE: Mapping[str, Make] = {
    f"{max_texts(_DIMENSIONS):,} texts": _embed("short", max_texts(_DIMENSIONS), max_texts(_DIMENSIONS)),
    "413, a text of 1 MB": _long_text,
    "413, 6 MB, not seen by the function": _large_body,
}
"""In turns, one every LARGE_EVERY requests."""


def mixed(count: int) -> Iterator[tuple[int, str, Request]]:
    """Numbers, kinds and requests; always the same ones."""
    source = random.Random(0)  # noqa: S311  not for secrets
    kinds, large = list(KINDS), list(LARGE)
    weights = [weight for weight, _ in KINDS.values()]
    for number in range(count):
        turn, place = divmod(number, LARGE_EVERY)
        if place == LARGE_FIRST:
            kind = large[turn % len(large)]
            yield number, kind, LARGE[kind](number, source)
        else:
            (kind,) = source.choices(kinds, weights)
            yield number, kind, KINDS[kind][1](number, source)
