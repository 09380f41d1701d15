"""An artifact of a random encoder with two layers, made in seconds and without torch: what `make check` tests with.

    python -m tests.support.random_model DIR

It has the name, the sizes of vectors and the limits of the real one, so that tests which compare our own parts with one
another find no difference. Its vectors mean nothing.
"""

from __future__ import annotations

import re
import sys
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from artifact import store
from artifact.manifest import MANIFEST, MODEL_FILES, TOKENIZER, VOCABULARY
from export.card import Card
from export.config import Config
from export.manifest import describe
from export.mapping import map_weights
from export.source import DEFAULT_MODEL, Source
from export.texts import VERIFICATION_TEXTS
from export.wordpiece import split_wordpiece
from quantize import DEFAULT_RECIPE, quantize

LAYERS, CHANNELS, HEADS, INNER, TOKENS = 2, 384, 12, 768, 256
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
"""Where BERT has them."""
WEIGHT = re.compile(r"(W[a-z]|b[a-z]|gamma|beta|words|positions|segments)[xy]?\d?")
"""Names that are given random numbers."""

EMBEDDINGS = """
    texts_tokens = Shape(input_ids)
    length = Slice(texts_tokens, one, two)
    places = Slice(numbers, zero, length, one)
    word = Gather(words, input_ids)
    segment = Gather(segments, token_type_ids)
    sum = Add(word, segment)
    position = Gather(positions, places)
    embedded = Add(sum, position)
    x0 = LayerNormalization <axis = -1, epsilon = 1e-12> (embedded, gamma, beta)
    wide = Unsqueeze(attention_mask, one)
    wider = Unsqueeze(wide, two)
    kept = Cast <to = 1> (wider)
    dropped = Sub(unit, kept)
    mask = Mul(dropped, lowest)
"""
LAYER = """
    qw{n} = MatMul(x{n}, Wq{n})
    qb{n} = Add(qw{n}, bq{n})
    qr{n} = Reshape(qb{n}, split)
    q{n} = Transpose <perm = [0, 2, 1, 3]> (qr{n})
    kw{n} = MatMul(x{n}, Wk{n})
    kb{n} = Add(kw{n}, bk{n})
    kr{n} = Reshape(kb{n}, split)
    k{n} = Transpose <perm = [0, 2, 3, 1]> (kr{n})
    vw{n} = MatMul(x{n}, Wv{n})
    vb{n} = Add(vw{n}, bv{n})
    vr{n} = Reshape(vb{n}, split)
    v{n} = Transpose <perm = [0, 2, 1, 3]> (vr{n})
    qk{n} = MatMul(q{n}, k{n})
    scores{n} = Div(qk{n}, root)
    masked{n} = Add(scores{n}, mask)
    p{n} = Softmax <axis = -1> (masked{n})
    pv{n} = MatMul(p{n}, v{n})
    ct{n} = Transpose <perm = [0, 2, 1, 3]> (pv{n})
    c{n} = Reshape(ct{n}, join)
    ow{n} = MatMul(c{n}, Wo{n})
    ob{n} = Add(ow{n}, bo{n})
    or{n} = Add(ob{n}, x{n})
    y{n} = LayerNormalization <axis = -1, epsilon = 1e-12> (or{n}, gammay{n}, betay{n})
    uw{n} = MatMul(y{n}, Wu{n})
    u{n} = Add(uw{n}, bu{n})
    ur{n} = Div(u{n}, root_two)
    e{n} = Erf(ur{n})
    e1{n} = Add(e{n}, unit)
    ue{n} = Mul(u{n}, e1{n})
    g{n} = Mul(ue{n}, half)
    dw{n} = MatMul(g{n}, Wd{n})
    db{n} = Add(dw{n}, bd{n})
    dr{n} = Add(db{n}, y{n})
    {output} = LayerNormalization <axis = -1, epsilon = 1e-12> (dr{n}, gammax{n}, betax{n})
"""


def tokenizer() -> Tokenizer:
    """BERT's kind of WordPiece, with the characters and words of the verification texts for a vocabulary."""
    lower = " ".join(VERIFICATION_TEXTS).lower()
    characters = sorted({*map(chr, range(33, 127)), *"äöüß中文"})
    words = sorted({"word", *re.findall("[a-z]{2,}", lower)})
    tokens = [*characters, *(f"##{each}" for each in characters if each.isalnum()), *words]
    free = (number for number in count() if number not in SPECIAL.values())
    vocabulary = SPECIAL | dict(zip(tokens, free, strict=False))
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))  # noqa: S106
    made.add_special_tokens(list(SPECIAL))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL[name]) for name in ("[CLS]", "[SEP]")]
    )
    return made


def encoder(words: int) -> onnx.ModelProto:
    """A BERT of random weights in float32, as optimum exports one, with a vocabulary of that many."""
    body = EMBEDDINGS + "".join(
        LAYER.format(n=layer, output=f"x{layer + 1}" if layer + 1 < LAYERS else "last_hidden_state")
        for layer in range(LAYERS)
    )
    inputs = ", ".join(f"int64[texts, tokens] {name}" for name in ("input_ids", "attention_mask", "token_type_ids"))
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> '
        f"encoder ({inputs}) => (float[texts, tokens, {CHANNELS}] last_hidden_state) {{{body}}}"
    )
    random = np.random.default_rng(0)
    shapes = {"Wu": (CHANNELS, INNER), "Wd": (INNER, CHANNELS), "bu": (INNER,)}
    tables = {"words": words, "positions": TOKENS, "segments": 2}
    constants: dict[str, np.ndarray] = {
        **{name: np.array([value], np.int64) for name, value in {"zero": 0, "one": 1, "two": 2}.items()},
        "numbers": np.arange(TOKENS)[None],
        "split": np.array([0, 0, HEADS, CHANNELS // HEADS]),
        "join": np.array([0, 0, CHANNELS]),
        "unit": np.array(1, np.float32),
        "half": np.array(0.5, np.float32),
        "root_two": np.array(2**0.5, np.float32),
        "root": np.array((CHANNELS // HEADS) ** 0.5, np.float32),
        "lowest": np.array(-1e4, np.float32),
    }
    for name in sorted({name for node in model.graph.node for name in node.input if WEIGHT.fullmatch(name)}):
        kind = name.rstrip("0123456789")
        if kind.startswith("gamma"):
            value = random.uniform(0.5, 1.5, CHANNELS)
        elif kind in tables:
            value = random.standard_normal((tables[kind], CHANNELS))
        else:
            shape = shapes.get(kind, (CHANNELS, CHANNELS) if kind.startswith("W") else (CHANNELS,))
            value = random.standard_normal(shape) / CHANNELS**0.5
        constants[name] = value.astype(np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    return model


def build(output: Path) -> None:
    """Install the artifact in a folder of models."""
    model_folder = output / DEFAULT_MODEL.split("/")[-1]
    with store.staging(model_folder) as workdir:
        built = workdir / "version"
        built.mkdir()
        made = tokenizer()
        made.save(str(built / TOKENIZER))
        wordpiece = split_wordpiece(built / TOKENIZER, built / VOCABULARY)
        float32, int8 = built / MODEL_FILES["fp32"], built / MODEL_FILES["int8"]
        onnx.save(encoder(made.get_vocab_size()), float32)
        quantize(float32, int8, built / TOKENIZER, TOKENS)
        map_weights(int8)
        config = Config(
            encoder=workdir,
            max_tokens=TOKENS,
            lower_case=True,
            pooling="mean",
            pooled_dimensions=CHANNELS,
            dense=(),
            dense_folders=(),
            normalize=True,
            truncate_dim=None,
            matryoshka=(),
            prompts={},
            default_prompt=None,
            similarity=None,
        )
        source = Source(workdir, DEFAULT_MODEL, "0" * 40, "folder", config, Card("apache-2.0"))
        manifest = describe(source, built, DEFAULT_RECIPE, wordpiece)
        (built / MANIFEST).write_bytes(manifest.to_json())
        store.install(built, model_folder, manifest.version)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
