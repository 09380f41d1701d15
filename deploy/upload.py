"""Uploads a version's files to S3. Files that are there already are skipped, and S3 refuses what arrives damaged."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from botocore.exceptions import ClientError

from artifact.manifest import MANIFEST, Manifest
from deploy.stack import aws_errors
from export.progress import Advance


def upload(client: Any, bucket: str, model: str, folder: Path, manifest: Manifest, advance: Advance) -> int:
    """Upload the files of a version, the manifest last: whoever finds a manifest finds all that it lists.

    Returns the bytes sent. Raises PublishError.
    """
    prefix = f"{model}/{manifest.version}"
    total = sum(entry.size for entry in manifest.files.values())
    sent = done = 0
    for name, entry in manifest.files.items():
        key = f"{prefix}/{name}"
        checksum = base64.b64encode(bytes.fromhex(entry.sha256)).decode()
        if not _is_there(client, bucket, key, entry.size, checksum):
            with (folder / name).open("rb") as file:
                base = done
                _put(client, bucket, key, _Watched(file, lambda position: advance(base + position, total)), checksum)  # noqa: B023  called within
            sent += entry.size
        done += entry.size
        advance(done, total)
    content = manifest.to_json()
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    key = f"{prefix}/{MANIFEST}"
    if not _is_there(client, bucket, key, len(content), checksum):
        _put(client, bucket, key, content, checksum)
        sent += len(content)
    return sent


def _is_there(client: Any, bucket: str, key: str, size: int, checksum: str) -> bool:
    """Whether S3 has an object of that size and SHA-256, which S3 itself has computed."""
    with aws_errors(f"look at s3://{bucket}/{key}"):
        try:
            head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
        except ClientError as error:
            if error.response["Error"]["Code"] != "404":
                raise
            return False
    return bool(head["ContentLength"] == size and head.get("ChecksumSHA256") == checksum)


def _put(client: Any, bucket: str, key: str, body: object, checksum: str) -> None:
    # In one piece, up to 5 GB: for several parts S3 would only keep a checksum of their checksums.
    with aws_errors(f"write s3://{bucket}/{key}"):
        client.put_object(Bucket=bucket, Key=key, Body=body, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum)


class _Watched:
    """A file that reports how far it has been read."""

    def __init__(self, file: IO[bytes], tell: Callable[[int], None]) -> None:
        self._file = file
        self._tell = tell

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self._tell(self._file.tell())
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
