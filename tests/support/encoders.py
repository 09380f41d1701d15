"""Small encoders of the family with random weights, exported as the real one is."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from export.to_onnx import to_onnx

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}


def random_encoder(folder: Path, tokenizer: Path, spread: float = 0.2, **settings: object) -> Path:
    """Write `model.onnx`, with weights of that `spread`, and return its path; `settings` are BertConfig's, by default
    SIZES."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES | settings, initializer_range=spread)
    BertModel(config).save_pretrained(folder / "model")
    shutil.copy(tokenizer, folder / "model" / "tokenizer.json")
    to_onnx(folder / "model", folder / "model.onnx", folder)
    return folder / "model.onnx"
