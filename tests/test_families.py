"""python -m export with each family, pooling and head, against sentence-transformers."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

from artifact.manifest import ArtifactCorruptError, open_artifact
from export.__main__ import main
from export.manifest import reduced
from handler import pages
from handler.embedder import Embedder
from quantize.fusion import OTHERWISE
from tests.support.models import WIDTH, save_model

pytestmark = pytest.mark.slow

PROMPTS = {"query": "query: ", "passage": "passage: "}
TEXTS = (
    "vitamin d",
    "iron rich foods",
    "  spaces  at both ends ",
    "",
    "敏捷的棕色狐狸跳过懒狗。",
    "👩‍👩‍👧‍👦 <mask> [MASK] <s> [CLS] pad <pad> [PAD]",
    "new-token and another",
    *("the history of medicine " * count for count in (1, 1, 3, 90)),
)


LONG = ("!" * 9000, "ha" * 4000, "漢字仮名" * 2500, "a b" * 4000, " \n" * 3000 + "word " * 900, "e\u0301 " * 4000)


class Case(NamedTuple):
    family: str
    settings: dict[str, Any]
    width: int = WIDTH
    tokens: int = 64


def tanh(outputs: int, inputs: int = WIDTH) -> Dense:
    torch.manual_seed(1)
    return Dense(inputs, outputs)


CASES = {
    "bert with the tokenizer of xlm-roberta, prompts": Case(
        "bert", {"tokenizer_of": "xlm-roberta", "prompts": PROMPTS, "max_tokens": 48}, tokens=48
    ),
    "bert, cls, dense, added tokens": Case(
        "bert", {"pooling": "cls", "dense": (tanh(24),), "added_tokens": ("new-token", "another")}, width=24
    ),
    "distilbert, dense, as it is, bfloat16": Case(
        "distilbert", {"dense": (tanh(48),), "normalize": False, "dtype": torch.bfloat16}, width=48
    ),
    "roberta, max, default prompt, as it is": Case(
        "roberta", {"pooling": "max", "normalize": False, "prompts": PROMPTS, "default_prompt_name": "query"}
    ),
    "roberta, last token, cut, float16": Case(
        "roberta", {"pooling": "lasttoken", "truncate_dim": 20, "dtype": torch.float16}, width=20
    ),
    "xlm-roberta, weighted mean, default prompt": Case(
        "xlm-roberta", {"pooling": "weightedmean", "prompts": PROMPTS, "default_prompt_name": "passage"}
    ),
    "xlm-roberta, root mean, two layers, cut, as it is": Case(
        "xlm-roberta",
        {
            "pooling": "mean_sqrt_len_tokens",
            "dense": (
                Dense(WIDTH, 40, bias=False, activation_function=nn.Identity()),
                Dense(40, 16, activation_function=nn.ReLU()),
            ),
            "normalize": False,
            "truncate_dim": 12,
        },
        width=12,
    ),
    "mpnet": Case("mpnet", {"added_tokens": ("new-token",)}),
}


def export(model: Path, output: Path, *options: str) -> int:
    return main(["--model", str(model), "--model-id", "my/model", "--output", str(output), *options])


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_as_sentence_transformers_has_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    folder = save_model(tmp_path, case.family, **case.settings)
    assert export(folder, tmp_path, "--precision", "fp32") == 0
    embedder = Embedder.load(tmp_path / "model", "fp32")
    reference = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    reference.max_seq_length = case.tokens  # of itself it may read more than the model has positions for

    def expected(**settings: Any) -> np.ndarray:
        return reference.encode(list(TEXTS), show_progress_bar=False, **settings)

    found = embedder.embed(TEXTS)
    assert found.vectors.shape == (len(TEXTS), case.width)
    np.testing.assert_allclose(found.vectors, expected(), rtol=1e-5, atol=1e-5)
    for prompt in (*case.settings.get("prompts", {}).values(), "any other: ", ""):
        np.testing.assert_allclose(
            embedder.embed(TEXTS, prompt=prompt).vectors, expected(prompt=prompt), rtol=1e-5, atol=1e-5
        )
    # Each text by itself has the vector that it has among the others.
    alone = np.concatenate([embedder.embed([text]).vectors for text in TEXTS])
    np.testing.assert_allclose(found.vectors, alone, rtol=0, atol=1e-6)
    assert (max(found.tokens), found.truncated) == (case.tokens, [len(TEXTS) - 1])
    # On request all become unit vectors.
    unit = embedder.embed_tokens(embedder.tokenize(TEXTS).ids, normalize=True)
    directions = expected() / np.linalg.norm(expected(), axis=1, keepdims=True)
    np.testing.assert_allclose(unit, directions, rtol=1e-5, atol=1e-5)
    embedder.check_longest()
    check_tokens(embedder, reference)


def test_a_dynamic_recipe_works_too(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "mpnet", dense=(tanh(24),), prompts=PROMPTS, default_prompt_name="query")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [en, de]\n---\n## Limitations\nShort texts.\n")
    assert export(folder, tmp_path, "--recipe", "avx512_vnni", "--precision", "int8") == 0
    embedder = Embedder.load(tmp_path / "model")
    together = embedder.embed(TEXTS).vectors
    np.testing.assert_array_equal(together, np.concatenate([embedder.embed([text]).vectors for text in TEXTS]))
    assert embedder.manifest.precisions["int8"].parity.mean_cosine > 0.985
    info = json.loads(orjson.dumps(pages.info(embedder)))
    assert (info["license"], info["languages"], info["limitations"]) == ("mit", ["en", "de"], "Short texts.")
    assert (info["prompts"], info["default_prompt"]) == ({"document": "", **PROMPTS}, "query")
    assert (info["similarity"], info["dimensions"], info["max_tokens"]) == ("cosine", 24, 64)
    # The dense layer's numbers belong to every precision, and are checked as the other files are.
    assert "dense.bin" in reduced(embedder.manifest, ["int8"]).files
    path = Path(open_artifact(tmp_path / "model").dense)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ArtifactCorruptError, match=r"dense.bin is damaged: it has CRC-32"):
        Embedder.load(tmp_path / "model")


def test_what_cannot_be_quantized_names_the_ways_that_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path, "bert", encoder={"hidden_act": "silu"})
    assert export(folder, tmp_path) == 1
    assert capsys.readouterr().err.endswith(f": {OTHERWISE}\n")
    assert not (tmp_path / "model" / "current").exists()
    assert export(folder, tmp_path, "--recipe", "avx2") == 0


def check_tokens(embedder: Embedder, reference: SentenceTransformer) -> None:
    """Long texts, of which a prefix is tokenized, and token ids, whichever the kind of tokenizer."""
    length = reference.max_seq_length
    assert length is not None
    for prompt in ("", "query: "):
        tokens = embedder.tokenize(LONG, prompt=prompt)
        texts = [prompt + text for text in LONG]
        assert tokens.ids == reference.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        counts = map(len, reference.tokenizer(texts)["input_ids"])
        assert tokens.truncated == [index for index, count in enumerate(counts) if count > length]
    ids = embedder.tokenize(["vitamin d", "a man plays the guitar", "敏捷的棕色"], prompt="").ids
    found, texts = embedder.tokens_of(ids)
    assert found.ids == ids
    assert embedder.tokenize(texts, prompt="").ids == ids
