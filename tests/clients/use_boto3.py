"""boto3: Lambda's Invoke at the given URL. `--model` is the function's name, `local` unless told."""

from __future__ import annotations

import argparse
import json
from typing import Any

import boto3
from exchange import MODEL, run


def embed(arguments: argparse.Namespace, texts: list[str]) -> dict[str, Any]:
    client = boto3.client(
        "lambda",
        endpoint_url=arguments.url,
        region_name="us-east-1",
        aws_access_key_id="unused",
        aws_secret_access_key="unused",  # noqa: S106  nobody checks it
    )
    name = "local" if arguments.model == MODEL else arguments.model
    answer = client.invoke(FunctionName=name, Payload=json.dumps({"texts": texts}))
    payload = json.load(answer["Payload"])
    assert answer["ExecutedVersion"] == "$LATEST"
    if "FunctionError" in answer:
        return {
            "error": {"class": payload["errorType"], "status": answer["StatusCode"], "message": payload["errorMessage"]}
        }
    if "error" in payload:
        return {"error": {"class": payload["error"]["code"], **payload["error"]}}
    return {"vectors": payload["embeddings"]}


run(embed)
