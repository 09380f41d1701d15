"""litellm with an OpenAI-compatible server."""

from __future__ import annotations

import argparse
from typing import Any

import litellm
from exchange import run


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    litellm.telemetry = False
    # Its own messages about an error would come before the JSON.
    litellm.suppress_debug_info = True
    answer = litellm.embedding(
        f"openai/{arguments.model}", input=texts, api_base=f"{arguments.url}/v1", api_key="unused"
    )
    return {"vectors": [item["embedding"] for item in answer.data], "prompt_tokens": answer.usage.prompt_tokens}


run(embed)
