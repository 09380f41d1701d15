"""Texts that show a model's activations, and the activations they give."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from tokenizers import Tokenizer

from quantize.errors import QuantizationError

Array = npt.NDArray[np.float32]
TOKENS_PER_RUN = 4096
OWN_TEXTS = Path(__file__).with_name("calibration.jsonl")
"""Written for this project: queries, questions, sentences and passages in English first, and other scripts, code and
odd input, without which unusual text would leave the ranges."""


@dataclass(frozen=True)
class Calibration:
    """What a static recipe needs beside the model."""

    tokenizer: Path
    max_tokens: int
    texts: Path = OWN_TEXTS

    def token_ids(self) -> list[list[int]]:
        """The texts as the model reads them, special tokens included.

        Raises QuantizationError.
        """
        texts = read_texts(self.texts)
        try:
            tokenizer = Tokenizer.from_file(str(self.tokenizer))
        except Exception as error:  # the library raises nothing more exact
            raise QuantizationError(f"cannot read the tokenizer {self.tokenizer}: {error}") from error
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def read_texts(path: Path) -> list[str]:
    """Texts of a JSONL file with a field `text`, or the lines of any other file.

    Raises QuantizationError if it cannot be read or has fewer than 100 texts.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
        lines = [line for line in lines if line.strip()]
        texts = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"cannot read calibration texts from {path} ({error!r}): one JSON object with text a line, or plain lines"
        ) from error
    if len(texts) < 100:
        raise QuantizationError(
            f"{path} has {len(texts)} texts: at least 100 are needed to see the activations' ranges"
        )
    return texts


def activations(model: onnx.ModelProto, names: Sequence[str], ids: Sequence[Sequence[int]]) -> dict[str, Array]:
    """The tensors `names`, which must be outputs of the model, for every token: float32, shape (tokens, channels).

    Tokens come in one fixed order, the same for every tensor and model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {node.name for node in session.get_inputs()}
    rows: dict[str, list[Array]] = {name: [] for name in names}
    for run in _runs(ids):
        batch = np.array(run, np.int64)
        feeds = {"input_ids": batch, "token_type_ids": np.zeros_like(batch)}
        found = session.run(list(names), {name: value for name, value in feeds.items() if name in inputs})
        for name, value in zip(names, found, strict=True):
            rows[name].append(value.reshape(-1, value.shape[-1]))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def _runs(ids: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Batches of texts of one length, so that nothing is padded."""
    for length, same in groupby(sorted(ids, key=len), key=len):
        batch = list(same)
        size = max(1, TOKENS_PER_RUN // length)
        for start in range(0, len(batch), size):
            yield batch[start : start + size]
