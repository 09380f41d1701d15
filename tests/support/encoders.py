"""Small encoders of the family with random weights, exported as the real one is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

from export.to_onnx import to_onnx

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
KINDS = {"bert": (BertConfig, BertModel), "mpnet": (MPNetConfig, MPNetModel)}


def random_encoder(folder: Path, tokenizer: Path, spread: float = 0.2, kind: str = "bert", **settings: Any) -> Path:
    """Write `model.onnx`, with weights of that `spread`, and return its path; `settings` are the configuration's, by
    default SIZES."""
    torch.manual_seed(0)
    config, model = KINDS[kind]
    model(config(**SIZES | settings, initializer_range=spread)).save_pretrained(folder / "model")
    shutil.copy(tokenizer, folder / "model" / "tokenizer.json")
    to_onnx(folder / "model", folder / "model.onnx", folder)
    return folder / "model.onnx"
