"""Small sentence-transformers models with random weights and real tokenizers, saved as people save theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizerFast,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizerFast,
)

from export.texts import HOSTILE, ORDINARY

WIDTH = 32
BERTS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTAS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
MPNETS = ROBERTAS | {"unk": "[UNK]"}


def word_pieces(special: Mapping[str, str]) -> Tokenizer:
    """As BERT has it."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(
        tokenizer, trainers.WordPieceTrainer(vocab_size=600, special_tokens=list(special.values())), special
    )


def byte_pairs(special: Mapping[str, str]) -> Tokenizer:
    """As RoBERTa has it: pairs of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(special.values()), initial_alphabet=alphabet)
    return _trained(tokenizer, trainer, special)


def unigram(special: Mapping[str, str]) -> Tokenizer:
    """As XLM-R has it: pieces with probabilities, a word's beginning marked."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=list(special.values()), unk_token=special["unk"], show_progress=False
    )
    return _trained(tokenizer, trainer, special)


def _trained(tokenizer: Tokenizer, trainer: Any, special: Mapping[str, str]) -> Tokenizer:
    tokenizer.train_from_iterator([*ORDINARY, *HOSTILE[:-1]], trainer)
    ids = [(special[name], tokenizer.token_to_id(special[name])) for name in ("cls", "sep")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special['cls']} $A {special['sep']}", pair=None, special_tokens=ids
    )
    return tokenizer


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 64}
DISTIL = {"n_layers": 2, "n_heads": 2, "dim": WIDTH, "hidden_dim": 64}
ENCODERS: Mapping[str, tuple[Any, Any, Any, Mapping[str, Any]]] = {
    "bert": (BertConfig, BertModel, BertTokenizerFast, SIZES),
    "distilbert": (DistilBertConfig, DistilBertModel, DistilBertTokenizerFast, DISTIL),
    "roberta": (RobertaConfig, RobertaModel, RobertaTokenizerFast, SIZES),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast, SIZES),
    "mpnet": (MPNetConfig, MPNetModel, MPNetTokenizerFast, SIZES),
}
TOKENIZERS: Mapping[str, tuple[Callable[[Mapping[str, str]], Tokenizer], Mapping[str, str]]] = {
    "bert": (word_pieces, BERTS),
    "distilbert": (word_pieces, BERTS),
    "roberta": (byte_pairs, ROBERTAS),
    "xlm-roberta": (unigram, ROBERTAS),
    "mpnet": (word_pieces, MPNETS),
}


def save_model(
    folder: Path,
    family: str,
    tokenizer_of: str | None = None,
    places: int = 64,
    pooling: str = "mean",
    dense: tuple[Dense, ...] = (),
    normalize: bool = True,
    dtype: torch.dtype = torch.float32,
    added_tokens: tuple[str, ...] = (),
    max_tokens: int | None = None,
    encoder: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Save a model of a family as sentence-transformers saves it; `settings` are SentenceTransformer's.

    `tokenizer_of` is the family whose tokenizer it has, by default its own; `places` are the longest text's tokens;
    `encoder` are further settings of the family's configuration.
    """
    config, kind, _, sizes = ENCODERS[family]
    train, special = TOKENIZERS[tokenizer_of or family]
    backend = train(special)
    backend.add_tokens(list(added_tokens))
    padding = backend.token_to_id(special["pad"])
    counted = places if "bert" in family.removesuffix("roberta") else places + padding + 1
    torch.manual_seed(0)
    network: PreTrainedModel = kind(
        config(
            **sizes,
            **(encoder or {}),
            vocab_size=backend.get_vocab_size(),
            max_position_embeddings=counted,
            pad_token_id=padding,
            initializer_range=0.2,
        )
    )
    torch.nn.Module.to(network, dtype)  # in place
    network.save_pretrained(folder / "encoder")
    names = {f"{name}_token": token for name, token in special.items()}
    loaded: PreTrainedTokenizerFast = ENCODERS[tokenizer_of or family][2](tokenizer_object=backend, **names)
    loaded.save_pretrained(folder / "encoder")
    transformer = Transformer(str(folder / "encoder"), max_seq_length=max_tokens, model_kwargs={"dtype": dtype})
    modules = [transformer, Pooling(WIDTH, pooling), *dense, *([Normalize()] if normalize else [])]
    SentenceTransformer(modules=modules, device="cpu", **settings).save_pretrained(str(folder / "model"))
    return folder / "model"


def edit_json(path: Path, **values: object) -> Path:
    """Change some fields of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
    return path
