"""litellm with the prefix of a provider as `--option`, `openai` unless told."""

from __future__ import annotations

import argparse
from typing import Any

import litellm
from exchange import run

ADDRESSES = {"azure": "", "huggingface": "/embed"}
"""What users give as `api_base`, after the service's URL, where it is not /v1."""


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    litellm.telemetry = False
    # Its own messages about an error would come before the JSON.
    litellm.suppress_debug_info = True
    provider = arguments.option or "openai"
    answer = litellm.embedding(
        f"{provider}/{arguments.model}",
        input=texts,
        api_base=arguments.url + ADDRESSES.get(provider, "/v1"),
        api_version="2024-10-21" if provider == "azure" else None,
        api_key="unused",
        # Else it would ask the hub what the model is for.
        **({"input_type": "embed"} if provider == "huggingface" else {}),
    )
    vectors = [item["embedding"] for item in answer.data]
    # What it counts itself, with a tokenizer of OpenAI's, is no concern of ours.
    return {"vectors": vectors} | ({} if provider == "huggingface" else {"prompt_tokens": answer.usage.prompt_tokens})


run(embed)
