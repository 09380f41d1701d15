"""No word is served badly: a fixed sample of the vocabulary, in every form, and extreme texts, against float32.

`python -m benchmarks quality` does it with the whole vocabulary.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from artifact.manifest import open_artifact
from export.texts import EXTREME
from export.verify import gate_texts
from export.words import FORMS, spread, words
from handler.embedder import Embedder, load_tokenizer
from tests.support.vectors import INT8_LOWEST_COSINE, cosines

Reference = Callable[[Sequence[str]], np.ndarray]

SAMPLE = {form: 12 if form == "250 times" else 100 for form in FORMS}
"""How many words in each form."""


def sample(model_folder: Path, form: str) -> list[str]:
    """Words between those of the gate, so that an artifact made to pass it is seen here."""
    vocabulary = words(load_tokenizer(open_artifact(model_folder)))
    return [FORMS[form](word) for word in spread(vocabulary, SAMPLE[form], place=0.4)]


@pytest.mark.parametrize("form", FORMS)
def test_int8_is_near_the_reference_on_words(
    int8: Embedder, reference: Reference, model_folder: Path, form: str
) -> None:
    texts = sample(model_folder, form)
    found = cosines(int8.embed(texts).vectors, reference(texts))
    assert found.min() >= INT8_LOWEST_COSINE, texts[int(found.argmin())]


@pytest.mark.parametrize("text", EXTREME, ids=lambda text: text[:12])
def test_int8_is_near_the_reference_on_extreme_texts(int8: Embedder, reference: Reference, text: str) -> None:
    (found,) = cosines(int8.embed([text]).vectors, reference([text]))
    assert found >= INT8_LOWEST_COSINE


def test_the_words_are_not_those_of_the_gate(model_folder: Path, source_folder: Path) -> None:
    gate = set(gate_texts(source_folder / "tokenizer.json"))
    for form in FORMS:
        assert not gate & set(sample(model_folder, form))
