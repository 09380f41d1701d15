"""LlamaIndex's OpenAILikeEmbedding."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from llama_index.embeddings.openai_like import OpenAILikeEmbedding


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    client = OpenAILikeEmbedding(model_name=arguments.model, api_base=f"{arguments.url}/v1", api_key="unused")
    vectors = client.get_text_embedding_batch(texts)
    assert client.get_query_embedding(texts[0]) == vectors[0]
    return {"vectors": vectors}


run(embed)
