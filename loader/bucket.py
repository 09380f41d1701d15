"""Reads the bucket of artifacts: one object `MODEL/VERSION/FILE` for each file of a version."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import orjson
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from artifact.manifest import MANIFEST, FileEntry, Manifest, parse_manifest
from loader.errors import BucketError, ObjectCorruptError, ObjectMissingError

CHUNK_BYTES = 1 << 20
MAX_MANIFEST_BYTES = 1 << 20
AGAIN = "publish the version again with: python -m deploy publish"

_CONFIG = Config(
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "max_attempts": 3},
    # Bytes are compared with the manifest's SHA-256: S3's own checksum would cost as much again.
    response_checksum_validation="when_required",
    # A gateway endpoint leads only to its own region's S3.
    s3={"us_east_1_regional_endpoint": "regional"},
)


class Bucket:
    """A bucket of artifacts. Every method raises BucketError, ObjectMissingError or ObjectCorruptError."""

    def __init__(self, name: str) -> None:
        self._name = name
        with self._errors(""):
            self._client: Any = boto3.client("s3", config=_CONFIG)

    def manifest(self, model: str, version: str) -> tuple[Manifest, bytes]:
        """The checked manifest of a version, and its bytes."""
        key = f"{model}/{version}/{MANIFEST}"
        with self._errors(key):
            response = self._client.get_object(Bucket=self._name, Key=key)
            if response["ContentLength"] > MAX_MANIFEST_BYTES:
                raise ObjectCorruptError(
                    f"{self._url(key)} has {response['ContentLength']} bytes, too many for a manifest: {AGAIN}"
                )
            content: bytes = response["Body"].read()
        try:
            manifest = parse_manifest(orjson.loads(content))
        except ValueError as error:
            raise ObjectCorruptError(f"{self._url(key)} is not a manifest: {error}: {AGAIN}") from error
        if manifest.version != version:
            raise ObjectCorruptError(f"{self._url(key)} is of another version, {manifest.version}: {AGAIN}")
        return manifest, content

    def copy(self, key: str, target: Path, entry: FileEntry) -> None:
        """Write an object to a file, piece by piece, and check its size and both checksums on the way."""
        with self._errors(key):
            response = self._client.get_object(Bucket=self._name, Key=key)
            size = response["ContentLength"]
            if size != entry.size:
                raise ObjectCorruptError(f"{self._url(key)} has {size} bytes, the manifest says {entry.size}: {AGAIN}")
            digest = hashlib.sha256()
            checksum = 0
            with target.open("wb") as file:
                for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
                    file.write(chunk)
                    digest.update(chunk)
                    checksum = zlib.crc32(chunk, checksum)
        if digest.hexdigest() != entry.sha256:
            raise ObjectCorruptError(
                f"{self._url(key)} has SHA-256 {digest.hexdigest()}, the manifest says {entry.sha256}: {AGAIN}"
            )
        if checksum != entry.crc32:
            raise ObjectCorruptError(
                f"{self._url(key)} has CRC-32 {checksum:08x}, the manifest says {entry.crc32:08x}: {AGAIN}"
            )

    def _url(self, key: str) -> str:
        return f"s3://{self._name}/{key}"

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn boto3's errors into the loader's."""
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "NoSuchKey":
                raise ObjectMissingError(f"{self._url(key)} does not exist: {AGAIN}") from error
            if code == "NoSuchBucket":
                raise BucketError(f"bucket {self._name} does not exist: set ARTIFACT_BUCKET to the stack's") from error
            raise BucketError(f"cannot read {self._url(key)}: {error}: {self._remedy(code)}") from error
        except BotoCoreError as error:
            raise BucketError(
                f"cannot read {self._url(key)}: {error}: if the error stays, check that the loader's subnets reach S3, "
                "by a gateway endpoint or NAT"
            ) from error

    def _remedy(self, code: str) -> str:
        if code in ("AccessDenied", "403"):
            return f"the loader's role and the VPC endpoint must allow s3:GetObject and s3:ListBucket on {self._name}"
        return "if it lasts, see AWS's documentation of the code"
