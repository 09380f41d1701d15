"""Pydantic AI's Embedder with an OpenAI-compatible server."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from pydantic_ai import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.providers.openai import OpenAIProvider


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    provider = OpenAIProvider(base_url=f"{arguments.url}/v1", api_key="unused")
    embedder = Embedder(OpenAIEmbeddingModel(arguments.model, provider=provider))
    answer = embedder.embed_documents_sync(texts)
    return {"vectors": answer.embeddings, "prompt_tokens": answer.usage.input_tokens}


run(embed)
