"""The recipes by name, and the one function that applies one to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quantize.check import Report, check_fits, report
from quantize.dynamic import DynamicRecipe
from quantize.errors import QuantizationError
from quantize.per_token import Advance, PerTokenRecipe
from quantize.source import check_source
from quantize.vocabulary import pieces

RECIPES: Mapping[str, PerTokenRecipe | DynamicRecipe] = {
    "per-token": PerTokenRecipe(),
    # Named for the CPUs and with the values of optimum's presets (optimum.onnxruntime.AutoQuantizationConfig).
    "avx2": DynamicRecipe(signed_weights=False),
    "avx512_vnni": DynamicRecipe(signed_weights=True),
    "arm64": DynamicRecipe(signed_weights=True),
}

DEFAULT_RECIPE = "per-token"
CHECKED = 50
"""Pieces of the vocabulary that the result is checked on."""


def _silent(done: int, total: int) -> None:
    """Show no progress."""


def quantize(
    source: Path,
    target: Path,
    tokenizer: Path,
    max_tokens: int = 256,
    recipe: str = DEFAULT_RECIPE,
    advance: Advance = _silent,
    min_cosine: float | None = None,
) -> Report:
    """Write the INT8 form of the float32 ONNX file `source` to `target`, whole or not at all.

    `tokenizer` is the model's tokenizer.json: pieces of its vocabulary, of at most `max_tokens`, show the recipe
    per-token which channels reach far, and some are what every recipe's result is checked on. `advance` is called with
    the runs done and their number. `min_cosine` is the mean cosine to float32 that the check must find, by default the
    recipe's own.
    Raises QuantizationError if the recipe is unknown, `source` is not what `check_source` and the recipe expect, the
    tokenizer cannot be read or is another model's, or the result is below `min_cosine`.
    """
    if recipe not in RECIPES:
        raise QuantizationError(f"no recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    check_source(source)
    vocabulary = pieces(tokenizer, max_tokens)
    check_fits(source, tokenizer, vocabulary)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        RECIPES[recipe].apply(source, partial, vocabulary, advance)
        found = report(source, partial, vocabulary[:: max(1, len(vocabulary) // CHECKED)])
        needed = RECIPES[recipe].min_cosine if min_cosine is None else min_cosine
        if not found.mean_cosine >= needed:
            raise QuantizationError(
                f"{target} is not written, its mean cosine would be below {needed}: {found}. Keep float32 for this "
                "model, or write it all the same: python -m quantize ... --min-cosine 0"
            )
        partial.replace(target)
        return found
    except OSError as error:
        raise QuantizationError(f"cannot write {target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
