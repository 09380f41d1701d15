"""openai-python, asynchronous: a request for each text, all at once."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from exchange import run
from openai import AsyncOpenAI


async def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    async with AsyncOpenAI(base_url=f"{arguments.url}/v1", api_key="unused") as client:
        requests = [client.embeddings.create(input=text, model=arguments.model) for text in texts]
        answers = await asyncio.gather(*requests)
    return {
        "vectors": [answer.data[0].embedding for answer in answers],
        "prompt_tokens": sum(answer.usage.prompt_tokens for answer in answers),
    }


run(lambda arguments, texts: asyncio.run(embed(arguments, texts)))
