"""LlamaIndex's TextEmbeddingsInference, which sends `inputs` and `truncate` to POST /embed."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    # An empty instruction: its default puts BGE's in front of the texts of models it does not know.
    client = TextEmbeddingsInference(
        model_name=arguments.model, base_url=arguments.url, query_instruction="", text_instruction=""
    )
    return {"vectors": client.get_text_embedding_batch(texts)}


run(embed)
