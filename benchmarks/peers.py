"""optimum's dynamic INT8 presets, made by optimum from the artifact's float32 file, run as people run them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from handler.artifact import MODEL_FILES, open_artifact

FOLDER = Path(__file__).parents[1] / "build" / "peers"
BATCH = 32
"""sentence-transformers' default batch size."""


def dynamic_file(model_folder: Path, per_channel: bool) -> Path:
    """The file of the preset `avx512_vnni`, made if it is missing; its name has the float32 file's digest."""
    artifact = open_artifact(model_folder)
    digest = artifact.manifest.files[MODEL_FILES["fp32"]].sha256
    path = FOLDER / f"{digest[:16]}-dynamic-per-{'channel' if per_channel else 'tensor'}.onnx"
    if path.exists():
        return path
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer

    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as workdir:
        source = Path(workdir) / "model.onnx"
        shutil.copyfile(artifact.model("fp32"), source)
        logging.disable(logging.WARNING)  # onnxruntime advises on preprocessing
        try:
            preset = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=per_channel)
            ORTQuantizer(source).quantize(preset, save_dir=workdir)
        finally:
            logging.disable(logging.NOTSET)
        (Path(workdir) / "model_quantized.onnx").replace(path)
    return path


class PaddedEncoder:
    """Texts sorted by length, in batches of BATCH padded to their longest, as sentence-transformers runs them."""

    def __init__(self, model: Path, tokenizer: Path, max_tokens: int, threads: int) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, float32, shape (n, dimensions)."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        rows = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        vectors: dict[int, npt.NDArray[np.float32]] = {}
        for batch in (rows[start : start + BATCH] for start in range(0, len(rows), BATCH)):
            vectors |= zip(batch, self._run([tokens[row] for row in batch]), strict=True)
        return np.array([vectors[row] for row in range(len(tokens))])

    def _run(self, tokens: Sequence[Sequence[int]]) -> Iterator[npt.NDArray[np.float32]]:
        ids = np.zeros((len(tokens), max(map(len, tokens))), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = self._session.run(None, feeds)[0]
        pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1)[:, None]
        yield from (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32)
