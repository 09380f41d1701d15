"""Chroma's OpenAIEmbeddingFunction."""

from __future__ import annotations

import argparse
import os
from typing import Any

from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction
from exchange import run


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    os.environ["CHROMA_OPENAI_API_KEY"] = "unused"
    function = OpenAIEmbeddingFunction(api_base=f"{arguments.url}/v1", model_name=arguments.model)
    return {"vectors": [vector.tolist() for vector in function(texts)]}


run(embed)
