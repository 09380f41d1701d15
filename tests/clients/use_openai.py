"""openai-python: all texts in one request. `--option float` asks for numbers; the client's default is base64."""

from __future__ import annotations

import argparse
from typing import Any

from exchange import run
from openai import OpenAI, omit


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    client = OpenAI(base_url=f"{arguments.url}/v1", api_key="unused")
    encoding = arguments.option or omit
    answer = client.embeddings.create(input=texts, model=arguments.model, encoding_format=encoding)
    assert [item.index for item in answer.data] == list(range(len(texts)))
    return {"vectors": [item.embedding for item in answer.data], "prompt_tokens": answer.usage.prompt_tokens}


run(embed)
