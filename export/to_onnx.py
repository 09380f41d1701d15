"""Float32 ONNX by optimum."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from export import ExportError

OPSET = 18
"""ONNX operator set; fixed, so that one revision always gives the same file."""


def to_onnx(source: Path, target: Path, workdir: Path) -> None:
    """Export the transformer in folder `source` to the file `target`. Raises ExportError.

    Inputs `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`: int64 (batch, length);
    output `last_hidden_state`: float32 (batch, length, dimensions). Both axes are dynamic.
    """
    from optimum.exporters.onnx import main_export

    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("optimum").setLevel(logging.ERROR)
    folder = workdir / "onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every shape that Python looks at
        try:
            main_export(
                str(source),
                output=str(folder),
                task="feature-extraction",
                library_name="transformers",
                opset=OPSET,
                do_validation=False,  # verify.py compares with sentence-transformers itself
            )
        except Exception as error:  # whatever optimum, transformers and torch raise
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            raise ExportError(f"optimum cannot export {source}: {error}") from error
    if list(folder.glob("*.onnx_data")):
        raise ExportError(f"{source} is over 2 GB as ONNX: too large for this service")
    (folder / "model.onnx").rename(target)
