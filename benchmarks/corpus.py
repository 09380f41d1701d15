"""Texts to measure with: the evaluation sets, the reader's own file, or generated ones."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.texts import ORDINARY


class CorpusError(Exception):
    """A file of texts cannot be read; the message says which and what is expected."""


@dataclass(frozen=True)
class Corpus:
    """Texts and where they came from."""

    name: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs with the similarity people gave them."""

    name: str
    left: Sequence[str]
    right: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class Retrieval:
    """Queries, and the passages they search."""

    name: str
    queries: Sequence[str]
    passages: Sequence[str]


def mixed_length(count: int, path: Path | None) -> Corpus:
    """The first `count` texts of `path`, else of EVAL_DATA's throughput corpus, else generated ones."""
    if path is not None:
        return Corpus(path.name, read_texts(path)[:count])
    if folder := os.environ.get("EVAL_DATA"):
        path = Path(folder) / "throughput_corpus.jsonl"
        return Corpus(path.name, read_texts(path)[:count])
    return Corpus("generated", generate(count))


def generate(count: int) -> list[str]:
    """Texts of 3 to 300 words, short ones most often, of words of the verification texts; always the same ones."""
    words = sorted({word for text in ORDINARY for word in text.split()})
    source = random.Random(0)  # noqa: S311  not for secrets
    lengths = [min(300, 3 + int(source.expovariate(1 / 40))) for _ in range(count)]
    return [" ".join(source.choices(words, k=length)) for length in lengths]


def of_length(words: int) -> str:
    """A text of exactly `words` one-token words."""
    vocabulary = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"]
    source = random.Random(words)  # noqa: S311  not for secrets
    return " ".join(source.choices(vocabulary, k=words))


def read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file with a field `text`, or the lines of any other file, empty ones left out.

    Raises CorpusError if it cannot be read or a text is not a string.
    """
    try:
        lines = [line for line in _lines(path) if line.strip()]
        texts = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is not a string")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"cannot read texts from {path} ({error!r}): one JSON object with text a line, or plain lines"
        ) from error
    return texts


def read_retrieval(path: Path) -> Retrieval:
    """A JSONL file with the fields `text` and `kind`: the passages, and the queries and questions.

    Raises CorpusError.
    """
    try:
        entries = [json.loads(line) for line in _lines(path)]
        texts = {kind: [entry["text"] for entry in entries if entry["kind"] in kinds] for kind, kinds in _KINDS.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"cannot read queries and passages from {path} ({error!r})") from error
    return Retrieval(path.name, **texts)


_KINDS = {"queries": ("query", "question"), "passages": ("passage",)}


def _lines(path: Path) -> list[str]:
    """Lines end at a newline alone; str.splitlines would end them inside texts too, at U+2028 for one."""
    return path.read_text("utf-8").removesuffix("\n").split("\n")


def read_pairs(path: Path) -> Pairs:
    """A TSV file with the columns sentence1, sentence2, score, named in its first line, without quoting.

    Raises CorpusError.
    """
    try:
        header, *rows = [line.split("\t") for line in _lines(path)]
        left, right, score = (header.index(name) for name in ("sentence1", "sentence2", "score"))
        return Pairs(
            path.name,
            [row[left] for row in rows],
            [row[right] for row in rows],
            [float(row[score]) for row in rows],
        )
    except (OSError, ValueError, IndexError) as error:
        raise CorpusError(f"cannot read pairs from {path} ({error!r}): TSV with sentence1, sentence2, score") from error
