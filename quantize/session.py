"""ONNX files run on token ids, in runs of texts of one length, so that nothing is padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from kernels import OperatorsError, register
from quantize.errors import QuantizationError

TOKENS_PER_RUN = 1024

Feed = Mapping[str, npt.NDArray[np.int64]]
"""What a model reads in one run: arrays of shape (texts, tokens)."""


def runs_of(ids: Sequence[Sequence[int]]) -> list[Feed]:
    """Texts of token ids, the shortest first."""
    feeds = []
    for length, same in groupby(sorted(ids, key=len), key=len):
        batch = list(same)
        size = max(1, TOKENS_PER_RUN // length)
        feeds += [feed(batch[start : start + size]) for start in range(0, len(batch), size)]
    return feeds


def feed(texts: Sequence[Sequence[int]]) -> Feed:
    """One run of texts of one length."""
    ids = np.array(texts, np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def open_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """A quiet session of a file, or of a model's bytes. Raises QuantizationError if the operators cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, and need not be told twice
    try:
        register(options)
    except OperatorsError as error:
        raise QuantizationError(str(error)) from error
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )


def run(session: onnxruntime.InferenceSession, names: Sequence[str], given: Feed) -> list[npt.NDArray[np.float32]]:
    """The tensors `names`, computed from those arrays in `given` that the model reads."""
    inputs = [node.name for node in session.get_inputs()]
    found: list[npt.NDArray[np.float32]] = session.run(list(names), {name: given[name] for name in inputs})
    return found
