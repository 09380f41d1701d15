"""openai-python's AzureOpenAI, which names the model in the path."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from openai import AzureOpenAI


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    client = AzureOpenAI(azure_endpoint=arguments.url, api_version="2024-10-21", api_key="unused")
    answer = client.embeddings.create(input=texts, model=arguments.model)
    return {"vectors": [item.embedding for item in answer.data], "prompt_tokens": answer.usage.prompt_tokens}


run(embed)
