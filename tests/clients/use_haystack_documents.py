"""Haystack's HuggingFaceAPIDocumentEmbedder with the URL of a text-embeddings-inference server: batches."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from haystack import Document
from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPIDocumentEmbedder


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    embedder = HuggingFaceAPIDocumentEmbedder(
        api_type="text_embeddings_inference",
        api_params={"url": arguments.url},
        token=None,
        normalize=True,
        batch_size=32,
        progress_bar=False,
    )
    documents = embedder.run(documents=[Document(content=text) for text in texts])["documents"]
    return {"vectors": [document.embedding for document in documents]}


run(embed)
