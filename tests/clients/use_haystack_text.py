"""Haystack's HuggingFaceAPITextEmbedder with the URL of a text-embeddings-inference server: a request for each text.

`--option raw` leaves its default, which is not to have the vectors normalized.
"""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from haystack_integrations.components.embedders.huggingface_api import HuggingFaceAPITextEmbedder


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    embedder = HuggingFaceAPITextEmbedder(
        api_type="text_embeddings_inference",
        api_params={"url": arguments.url},
        token=None,
        normalize=arguments.option != "raw",
    )
    return {"vectors": [embedder.run(text=text)["embedding"] for text in texts]}


run(embed)
