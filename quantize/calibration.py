"""Texts that show a model's activations, and the activations they give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from tokenizers import Tokenizer

from kernels import OperatorsError, register
from quantize.errors import QuantizationError

Array = npt.NDArray[np.float32]
TOKENS_PER_RUN = 4096
MINIMUM = 100
"""Texts that a calibration must have."""
HELD_OUT = 10
"""One text in so many is kept for the check."""
OWN_TEXTS = Path(__file__).with_name("calibration.jsonl")
"""Written for this project: queries, questions, sentences and passages in English first, and other scripts, code and
odd input, without which unusual text would leave the ranges."""


@dataclass(frozen=True)
class Calibration:
    """What a static recipe needs beside the model."""

    tokenizer: Path
    max_tokens: int
    texts: Path = OWN_TEXTS
    vocabulary: bool = True
    """Whether to calibrate with the vocabulary beside the texts."""

    def token_ids(self) -> tuple[list[list[int]], list[list[int]]]:
        """What to calibrate with, and every tenth text, held out to check the result; special tokens included.

        Raises QuantizationError.
        """
        texts = read_texts(self.texts)
        if len(texts) < MINIMUM:
            raise QuantizationError(
                f"{self.texts} has {len(texts)} texts: at least {MINIMUM} are needed to see the activations' ranges"
            )
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer))
        except Exception as error:  # the library raises nothing more exact
            raise QuantizationError(f"cannot read the tokenizer {self.tokenizer}: {error}") from error
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        (empty,) = tokenizer.encode_batch([""])
        pieces = vocabulary_pieces(tokenizer.get_vocab_size(), empty.ids, self.max_tokens) if self.vocabulary else []
        return [text for row, text in enumerate(ids) if row % HELD_OUT] + pieces, ids[::HELD_OUT]


def vocabulary_pieces(tokens: int, specials: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The whole vocabulary once, in random order, cut into pieces of 1 to 100 tokens, short ones most often.

    No collection of texts has every word. Some words excite channels that others leave alone, and a channel's range
    must not depend on which words were chosen. `specials` are the first and last tokens of every text.
    """
    source = np.random.default_rng(0)
    order = source.permutation(tokens).tolist()
    first, last = specials[:1], specials[1:]
    pieces: list[list[int]] = []
    start = 0
    while start < tokens:
        size = min(int(100 ** source.random()), max_tokens - len(specials))
        pieces.append([*first, *order[start : start + size], *last])
        start += size
    return pieces


def read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file with a field `text`, or the lines of any other file, empty ones left out.

    Raises QuantizationError if it cannot be read or a text is not a string.
    """
    try:
        # Lines end at a newline alone; str.splitlines would end them inside texts too, at U+2028 for one.
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
        texts = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is not a string")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"cannot read texts from {path} ({error!r}): one JSON object with text a line, or plain lines"
        ) from error
    return texts


@dataclass(frozen=True)
class Statistics:
    """Of each channel of a tensor over all tokens: float32, shape (channels,)."""

    lowest: Array
    highest: Array
    mean: Array

    @property
    def middle(self) -> Array:
        """Between lowest and highest."""
        return (self.lowest + self.highest) / np.float32(2)


Feeds = Sequence[Mapping[str, npt.NDArray[np.generic]]]
"""What a model reads, of one run after the other."""


def feeds_of(ids: Sequence[Sequence[int]]) -> Feeds:
    """Texts of token ids in runs of one length, so that nothing is padded."""
    feeds = []
    for length, same in groupby(sorted(ids, key=len), key=len):
        batch = list(same)
        size = max(1, TOKENS_PER_RUN // length)
        feeds += [feed(batch[start : start + size]) for start in range(0, len(batch), size)]
    return feeds


def feed(texts: Sequence[Sequence[int]]) -> Mapping[str, npt.NDArray[np.generic]]:
    """One run of texts of one length, each array of shape (texts, length)."""
    ids = np.array(texts, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def statistics(model: onnx.ModelProto, names: Sequence[str], feeds: Feeds) -> dict[str, Statistics]:
    """Statistics of the tensors `names`, which must be outputs of the model."""
    per_run: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in names}
    rows_of = dict.fromkeys(names, 0)
    for values in outputs(model, names, feeds):
        for name, value in values.items():
            rows = value.reshape(-1, value.shape[-1])
            per_run[name].append((rows.min(axis=0), rows.max(axis=0), rows.sum(axis=0)))
            rows_of[name] += len(rows)
    found = {}
    for name, runs in per_run.items():
        lowest, highest, totals = (np.stack(parts) for parts in zip(*runs, strict=True))
        mean: Array = (totals.sum(axis=0, dtype=np.float64) / rows_of[name]).astype(np.float32)
        found[name] = Statistics(lowest.min(axis=0), highest.max(axis=0), mean)
    return found


def activations(model: onnx.ModelProto, name: str, feeds: Feeds) -> Array:
    """The tensor `name`, which must be an output of the model, for every token: float32, shape (tokens, channels)."""
    found = (values[name] for values in outputs(model, [name], feeds))
    return np.concatenate([value.reshape(-1, value.shape[-1]) for value in found])


def outputs(model: onnx.ModelProto, names: Sequence[str], feeds: Feeds) -> Iterator[dict[str, Array]]:
    """The tensors `names` of one run after the other."""
    session = open_session(model.SerializeToString())
    for each in feeds:
        yield dict(zip(names, run(session, names, each), strict=True))


def open_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A quiet session of a file, or of a model's bytes. Raises QuantizationError if the operators cannot be had."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        register(options)
    except OperatorsError as error:
        raise QuantizationError(str(error)) from error
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def run(
    session: onnxruntime.InferenceSession, names: Sequence[str], given: Mapping[str, npt.NDArray[np.generic]]
) -> list[Array]:
    """The tensors `names`; of what is given, the session is fed what it reads."""
    inputs = [node.name for node in session.get_inputs()]
    found: list[Array] = session.run(list(names), {name: given[name] for name in inputs})
    return found
