"""LangChain's HuggingFaceInferenceAPIEmbeddings, which does not look at the status of an answer."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from langchain_community.embeddings import HuggingFaceInferenceAPIEmbeddings


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    client = HuggingFaceInferenceAPIEmbeddings(api_key="unused", api_url=arguments.url, model_name=arguments.model)
    vectors = client.embed_documents(texts)
    assert client.embed_query(texts[0]) == vectors[0]
    return {"vectors": vectors}


run(embed)
