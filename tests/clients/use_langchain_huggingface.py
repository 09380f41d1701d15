"""LangChain's HuggingFaceEndpointEmbeddings, which speaks text-embeddings-inference's protocol at its root route."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from huggingface_hub import InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    embeddings = HuggingFaceEndpointEmbeddings(model=arguments.model)
    # Since 1.2.2 it refuses a URL as `model` (langchain-ai/langchain issue 39072), though its client takes one.
    embeddings.client = InferenceClient(model=arguments.url)
    vectors = embeddings.embed_documents(texts)
    assert embeddings.embed_query(texts[0]) == vectors[0]
    return {"vectors": vectors}


run(embed)
