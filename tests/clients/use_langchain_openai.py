"""LangChain's OpenAIEmbeddings. `--option token-ids` leaves its default, which sends the ids of OpenAI's tokenizer."""

from __future__ import annotations

import argparse
import os
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from exchange import run

# tiktoken would download this file; litellm's package carries it.
os.environ["TIKTOKEN_CACHE_DIR"] = str(
    Path(sysconfig.get_path("purelib"), "litellm", "litellm_core_utils", "tokenizers")
)


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    from langchain_openai import OpenAIEmbeddings

    settings: dict[str, Any] = {} if arguments.option == "token-ids" else {"check_embedding_ctx_length": False}
    with warnings.catch_warnings(action="ignore"):  # tiktoken does not know the model
        client = OpenAIEmbeddings(model=arguments.model, base_url=f"{arguments.url}/v1", api_key="unused", **settings)
        vectors = client.embed_documents(texts)
    assert settings == {} or client.embed_query(texts[0]) == vectors[0]
    return {"vectors": vectors}


run(embed)
