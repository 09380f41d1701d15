"""The loader: from S3 to the file system whole or not at all, against moto and under the real runtime client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest

from export.manifest import file_entry, reduced
from handler.artifact import CHECKSUM, MANIFEST, MODEL_FILES, TOKENIZER, VOCABULARY, Manifest, open_artifact
from handler.embedder import Embedder
from loader import app, errors, store
from tests.cloud import BUCKET, Cloud, cloud, int8_only, isolated, moto, put_version, recycle, wait_until
from tests.conftest import MODEL_NAME
from tests.servers import ROOT, Answer, Local, send

__all__ = ["cloud", "int8_only", "moto"]  # fixtures

FILES = {TOKENIZER: 5_000, VOCABULARY: 2_000, MODEL_FILES["int8"]: 50_000, MODEL_FILES["int8"] + "_data": 3_000_000}
KEY = f"{MODEL_NAME}/{{}}/{MODEL_FILES['int8']}_data"


@pytest.fixture(scope="module")
def small(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A model folder with versions v1 to v5, and their names: files of random bytes, for all that opens no model."""
    folder = tmp_path_factory.mktemp("small") / MODEL_NAME
    names = [f"v{number}" for number in range(1, 6)]
    base = reduced(open_artifact(model_folder).manifest, ["int8"])
    for number, name in enumerate(names, 1):
        (folder / name).mkdir(parents=True)
        for file, size in FILES.items():
            (folder / name / file).write_bytes(np.random.default_rng(number).bytes(size))
        files = {file: file_entry(folder / name / file) for file in FILES}
        manifest = base._replace(version=name, files=files, created=f"2026-01-0{number}T00:00:00+00:00")
        (folder / name / MANIFEST).write_bytes(manifest.to_json())
    return folder, names


@pytest.fixture
def bucket(cloud: Cloud, small: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of S3, whose bucket has the small versions."""
    monkeypatch.setenv("ARTIFACT_BUCKET", BUCKET)
    for name in small[1]:
        put_version(cloud.client("s3"), small[0], name)
    return cloud.client("s3")


@pytest.fixture
def efs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file system, where MODEL_CACHE_DIR is."""
    folder = tmp_path / "efs"
    folder.mkdir()
    monkeypatch.setenv("MODEL_CACHE_DIR", str(folder))
    return folder


def call(action: str, **fields: object) -> dict[str, Any]:
    return app.lambda_handler({"action": action, "model": MODEL_NAME, **fields}, None)


def load(version: str) -> dict[str, Any]:
    return call("load", version=version)


def invoke(local: Local, event: dict[str, Any]) -> Answer:
    return send(f"{local.invoke_url}/2015-03-31/functions/local/invocations", json.dumps(event).encode(), "POST")


def versions_of(efs: Path) -> list[str]:
    """The versions on the file system, of which every byte is right, and nothing else."""
    folder = efs / MODEL_NAME
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert [name for name in found if store.is_intact(folder / name)] == found
    return found


def in_use(efs: Path) -> str:
    artifact = open_artifact(efs / MODEL_NAME)
    artifact.check_digests()
    return artifact.manifest.version


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory, with these options."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    ran = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True)
    if ran.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {ran.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_load_copies_a_version_and_puts_it_into_use(bucket: Any, efs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(FILES.values())
    expected = {"version": "v1", "previous": None, "copied": True, "size": size, "removed": []}
    assert load("v1") == expected
    assert load("v2") == expected | {"version": "v2", "previous": "v1"}
    assert (in_use(efs), versions_of(efs)) == ("v2", ["v1", "v2"])
    assert sorted(path.name for path in (efs / MODEL_NAME).iterdir()) == [".lock", "current", "v1", "v2"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["level"], line["action"], line["version"]) for line in lines] == [
        ("INFO", "load", "v1"),
        ("INFO", "load", "v2"),
    ]
    assert lines[0]["result"] == expected


def test_load_of_what_is_there_only_puts_it_into_use(bucket: Any, efs: Path) -> None:
    load("v1")
    load("v2")
    inode = (efs / MODEL_NAME / "v1").stat().st_ino
    assert load("v1") | {"size": 0} == {"version": "v1", "previous": "v2", "copied": False, "size": 0, "removed": []}
    assert (in_use(efs), (efs / MODEL_NAME / "v1").stat().st_ino) == ("v1", inode)


def test_load_replaces_a_damaged_version(bucket: Any, efs: Path) -> None:
    load("v1")
    path = efs / MODEL_NAME / "v1" / TOKENIZER
    path.write_bytes(bytes(path.stat().st_size))
    assert load("v1")["copied"] is True
    assert versions_of(efs) == ["v1"]


def test_load_keeps_the_newest_and_the_one_that_was_in_use(
    bucket: Any, efs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest version was in use: environments that run have mapped it."""
    monkeypatch.setenv("KEEP_VERSIONS", "1")
    for version in ("v2", "v3", "v1"):
        load(version)
    assert versions_of(efs) == ["v1", "v2", "v3"]
    assert load("v4")["removed"] == ["v2"]
    assert versions_of(efs) == ["v1", "v3", "v4"]
    assert load("v5")["removed"] == ["v1"]


def test_prune_never_removes_the_version_in_use(bucket: Any, efs: Path) -> None:
    for version in ("v1", "v2", "v3"):
        load(version)
    call("use", version="v1")
    (efs / MODEL_NAME / ".staging-7").mkdir()
    (efs / MODEL_NAME / ".staging-7" / "half").write_bytes(b"half")
    assert call("prune", keep=1) == {"removed": ["v2"], "leftovers": 1}
    assert call("prune", keep=0) == {"removed": ["v3"], "leftovers": 0}
    assert (in_use(efs), versions_of(efs)) == ("v1", ["v1"])
    assert app.lambda_handler({"action": "prune", "model": "other", "keep": 0}, None)["removed"] == []
    assert not (efs / "other").exists()


def test_use_goes_back_and_forth(bucket: Any, efs: Path) -> None:
    load("v1")
    load("v2")
    assert call("use", version="v1") == {"version": "v1", "previous": "v2"}
    assert in_use(efs) == "v1"
    assert call("use", version="v2") == {"version": "v2", "previous": "v1"}
    with pytest.raises(
        errors.VersionMissingError, match="has no version v3, only: v1, v2: use one of these, or publish"
    ):
        call("use", version="v3")
    (efs / MODEL_NAME / "v1" / TOKENIZER).write_bytes(b"damaged")
    with pytest.raises(errors.VersionCorruptError, match=r"tokenizer\.json has 7 bytes, .*: publish the version again"):
        call("use", version="v1")
    assert in_use(efs) == "v2"


def test_list_tells_what_is_there(bucket: Any, efs: Path) -> None:
    assert call("list") == {"current": None, "versions": []}
    assert not (efs / MODEL_NAME).exists()
    load("v1")
    load("v2")
    path = efs / MODEL_NAME / "v1" / TOKENIZER
    path.write_bytes(bytes(path.stat().st_size))
    listed = json.loads(json.dumps(call("list")))
    assert listed["current"] == "v2"
    second, first = listed["versions"]
    size = sum(FILES.values()) + (efs / MODEL_NAME / "v2" / MANIFEST).stat().st_size
    expected = {"version": "v2", "created": "2026-01-02T00:00:00+00:00", "size": size, "current": True, "intact": True}
    assert second == expected | {"problem": None}
    assert (first["version"], first["current"], first["intact"]) == ("v1", False, False)
    assert "SHA-256" in first["problem"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (None, "action is None, not one of load, use, list, prune"),
        ({"action": "remove"}, "action is 'remove'"),
        ({"action": ["load"]}, r"action is \['load'\]"),
        ({"action": "load", "model": MODEL_NAME}, "'version' is missing"),
        ({"action": "list", "model": MODEL_NAME, "version": "v1"}, "'version' is not one of them"),
        ({"action": "list", "model": "../other"}, r"model is '\.\./other'"),
        ({"action": "list", "model": ""}, "model is ''"),
        ({"action": "load", "model": MODEL_NAME, "version": ".."}, r"version is '\.\.'"),
        ({"action": "use", "model": MODEL_NAME, "version": "v1/../v2"}, "version is 'v1/../v2'"),
        ({"action": "use", "model": MODEL_NAME, "version": 1}, "version is 1"),
        ({"action": "prune", "model": MODEL_NAME, "keep": -1}, "keep is -1"),
        ({"action": "prune", "model": MODEL_NAME, "keep": True}, "keep is True"),
        ({"action": "prune", "model": MODEL_NAME, "keep": "1"}, "keep is '1'"),
    ],
)
def test_events_are_checked_wholly(event: object, message: str, efs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.InvalidRequestError, match=message):
        app.lambda_handler(event, None)
    line = json.loads(capsys.readouterr().out)
    assert (line["level"], line["error"]["type"]) == ("ERROR", "InvalidRequestError")
    assert not list(efs.iterdir())


def change_manifest(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Another manifest, whose own checksum is right."""
    data = orjson.loads(content)
    data.pop(CHECKSUM)
    change(data)
    return orjson.dumps({**data, CHECKSUM: zlib.crc32(orjson.dumps(data))})


def escape(data: dict[str, Any]) -> None:
    data["files"]["../../escaped"] = data["files"][TOKENIZER]


def test_objects_that_are_wrong_change_nothing(bucket: Any, efs: Path) -> None:
    load("v1")
    key = KEY.format("v2")
    manifest_key = f"{MODEL_NAME}/v2/{MANIFEST}"
    good = bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    manifest = bucket.get_object(Bucket=BUCKET, Key=manifest_key)["Body"].read()
    flipped = bytearray(good)
    flipped[1_234_567] ^= 1
    digest = hashlib.sha256(flipped).hexdigest()
    cases: Sequence[tuple[str, bytes | None, type[errors.LoaderError], str]] = [
        (key, bytes(flipped), errors.ObjectCorruptError, f"{key} has SHA-256 {digest}, the manifest says"),
        (key, good[:-1], errors.ObjectCorruptError, f"{key} has 2999999 bytes, the manifest says 3000000"),
        (key, good + b"\0", errors.ObjectCorruptError, "has 3000001 bytes"),
        (key, None, errors.ObjectMissingError, f"s3://{BUCKET}/{key} does not exist: publish the version again"),
        (manifest_key, None, errors.ObjectMissingError, f"{manifest_key} does not exist"),
        (manifest_key, b"{", errors.ObjectCorruptError, "is no manifest"),
        (
            manifest_key,
            manifest.replace(b'"dimensions": 384', b'"dimensions": 385'),
            errors.ObjectCorruptError,
            "crc32",
        ),
        (manifest_key, bytes(1 << 20) + b"\0", errors.ObjectCorruptError, "has 1048577 bytes, no manifest"),
        (
            manifest_key,
            change_manifest(manifest, escape),
            errors.ObjectCorruptError,
            "escaped is not a plain file name",
        ),
        (
            manifest_key,
            change_manifest(manifest, lambda data: data.update(version="v3")),
            errors.ObjectCorruptError,
            "is of another version, v3",
        ),
    ]
    for damaged, content, error, message in cases:
        if content is None:
            bucket.delete_object(Bucket=BUCKET, Key=damaged)
        else:
            bucket.put_object(Bucket=BUCKET, Key=damaged, Body=content)
        with pytest.raises(error, match=message):
            load("v2")
        assert (in_use(efs), versions_of(efs)) == ("v1", ["v1"])
        assert sorted(path.name for path in efs.rglob("*")) == sorted(
            [MODEL_NAME, ".lock", "current", "v1", MANIFEST, *FILES]
        )
        bucket.put_object(Bucket=BUCKET, Key=damaged, Body=good if damaged == key else manifest)
    assert load("v2")["copied"] is True


def test_an_unreadable_bucket_is_named(bucket: Any, efs: Path, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load("v1")
    monkeypatch.setenv("ARTIFACT_BUCKET", "absent")
    with pytest.raises(errors.BucketError, match="bucket absent does not exist: set ARTIFACT_BUCKET"):
        load("v2")
    monkeypatch.setenv("ARTIFACT_BUCKET", BUCKET)
    policy = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    bucket.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [policy]}))
    with pytest.raises(errors.BucketError, match=r"Forbidden.*must allow s3:GetObject and s3:ListBucket on artifacts"):
        load("v2")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(errors.BucketError, match=r"Could not connect.*see whether the loader's subnets reach S3"):
        load("v2")
    isolated(monkeypatch, AWS_ENDPOINT_URL_S3=moto, AWS_DEFAULT_REGION="us-east-1")
    with pytest.raises(errors.BucketError, match="Unable to locate credentials"):
        load("v2")
    monkeypatch.delenv("ARTIFACT_BUCKET")
    with pytest.raises(errors.ConfigurationError, match="ARTIFACT_BUCKET is not set"):
        load("v2")
    assert (in_use(efs), versions_of(efs)) == ("v1", ["v1"])


def test_settings_that_cannot_be_used_are_named(efs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEP_VERSIONS", "all")
    with pytest.raises(errors.ConfigurationError, match="KEEP_VERSIONS is 'all'"):
        call("list")
    monkeypatch.delenv("KEEP_VERSIONS")
    monkeypatch.setenv("MODEL_CACHE_DIR", str(efs / "absent"))
    with pytest.raises(errors.StorageError, match="absent, which is no folder: set it to where EFS is mounted"):
        call("list")


def test_the_lock_is_waited_for_and_then_named(bucket: Any, efs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("v1")
    monkeypatch.setattr(app, "LOCK_SECONDS", 0.3)
    with store.locked(efs / MODEL_NAME):
        for action in ("load", "use"):
            with pytest.raises(errors.BusyError, match=rf"for over 0\.3 s, it holds .*{MODEL_NAME}/\.lock: try again"):
                call(action, version="v1")
        with pytest.raises(errors.BusyError):
            call("prune", keep=0)
        assert call("list")["current"] == "v1"
    monkeypatch.setattr(app, "LOCK_SECONDS", 10)
    released = threading.Event()

    def hold() -> None:
        with store.locked(efs / MODEL_NAME):
            released.wait(0.5)

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert load("v2")["version"] == "v2"
        holder.result()


def test_many_loads_at_once_take_turns(bucket: Any, efs: Path, small: tuple[Path, list[str]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(load, [*small[1][:4], *small[1][:4]]))
    assert sum(result["copied"] for result in results) == 4
    assert versions_of(efs) == small[1][:4]
    assert in_use(efs) in small[1][:4]


def test_killed_at_any_step_a_reader_finds_a_whole_version(bucket: Any, efs: Path) -> None:
    """kill -9 before the first, second, ... operation on the file system, until one run gets through."""
    load("v1")
    command = [sys.executable, "-m", "tests.programs.kill_loader", str(efs), MODEL_NAME, "v2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seen = [line.split() for line in ran.stdout.splitlines() if line[0].isdigit()]
    assert len(seen) > 10
    assert {status for _, status, _ in seen[:-1]} == {str(-signal.SIGKILL)}
    assert seen[-1][1:] == ["0", "v2"]
    assert seen[0][2] == "v1"
    assert (in_use(efs), versions_of(efs)) == ("v2", ["v1", "v2"])


def test_a_full_file_system_is_named_and_stays_as_it_was(bucket: Any, efs: Path) -> None:
    with mounted(efs, "size=5m"):
        load("v1")
        before = shutil.disk_usage(efs).used
        with pytest.raises(
            errors.StorageFullError, match=f"{efs} is full .* the version in use is untouched: make room"
        ):
            load("v2")
        assert (in_use(efs), versions_of(efs)) == ("v1", ["v1"])
        assert shutil.disk_usage(efs).used == before
        assert call("list")["current"] == "v1"


def test_a_file_system_that_cannot_be_written_to_is_named(bucket: Any, efs: Path) -> None:
    with mounted(efs, "size=20m"):
        load("v1")
        subprocess.run(["mount", "-o", "remount,ro", efs], check=True)
        for action in ("load", "use"):
            with pytest.raises(
                errors.StorageError, match=r"cannot be written to .*ClientWrite, and the access point's"
            ):
                call(action, version="v1")
        assert call("list")["versions"][0]["intact"] is True
        assert in_use(efs) == "v1"


@pytest.fixture
def deployed(
    cloud: Cloud, efs: Path, int8_only: tuple[Path, list[str]], start: Callable[..., Local]
) -> tuple[Local, Local]:
    """The loader and the function that embeds under the runtime client, on one file system; versions in the bucket."""
    for version in int8_only[1]:
        put_version(cloud.client("s3"), int8_only[0], version)
    variables = {**cloud.variables, "MODEL_CACHE_DIR": str(efs), "ARTIFACT_BUCKET": BUCKET}
    loader = start("loader.app.lambda_handler", "--invoke-port", "0", **variables)
    return loader, start(MODEL_CACHE_DIR=str(efs))


def test_the_function_serves_what_the_loader_loads(
    deployed: tuple[Local, Local], int8_only: tuple[Path, list[str]], int8: Embedder
) -> None:
    loader, embedding = deployed
    first, second = int8_only[1]
    assert embedding.send("/info").json()["error"]["code"] == "model_unavailable"
    expected = int8.embed(["vitamin d"]).vectors[0]
    for action, version in [("load", first), ("load", second), ("use", first), ("load", second)]:
        answer = invoke(loader, {"action": action, "model": MODEL_NAME, "version": version})
        assert (answer.status, answer.json()["version"]) == (200, version)
        assert "x-amz-function-error" not in answer.headers
        if action == "use":
            assert embedding.send("/info").json()["artifact_version"] == second, "an environment keeps its version"
        recycle(embedding)
        assert embedding.send("/info").json()["artifact_version"] == version
        vector = embedding.send("/embed", b'{"text": "vitamin d"}').json()["embedding"]
        np.testing.assert_array_equal(np.float32(vector), expected)
    answer = invoke(loader, {"action": "use", "model": MODEL_NAME, "version": "absent"})
    assert (answer.status, answer.headers["x-amz-function-error"]) == (200, "Unhandled")
    assert answer.json()["errorType"] == "VersionMissingError"
    loader.wait_for_log('"type": "VersionMissingError"')


def test_killed_in_the_middle_of_a_file_the_next_call_finishes(
    deployed: tuple[Local, Local], int8_only: tuple[Path, list[str]], efs: Path
) -> None:
    loader, embedding = deployed
    first, second = int8_only[1]
    invoke(loader, {"action": "load", "model": MODEL_NAME, "version": first})
    for size in (1, 6_000_000, 15_000_000):
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(invoke, loader, {"action": "load", "model": MODEL_NAME, "version": second})
            weights = f".staging-*/version/{MODEL_FILES['int8']}_data"
            wait_until(lambda: any(path.stat().st_size >= size for path in (efs / MODEL_NAME).glob(weights)))  # noqa: B023
            (child,) = psutil.Process(loader.process.pid).children()
            child.kill()
            assert call.result().json()["errorType"] == "Runtime.ExitError"
        assert list((efs / MODEL_NAME).glob(weights)), "it was killed too late"
        assert in_use(efs) == first
        assert embedding.send("/info").json()["artifact_version"] == first
    answer = invoke(loader, {"action": "load", "model": MODEL_NAME, "version": second})
    assert answer.json()["copied"] is True
    assert (in_use(efs), versions_of(efs)) == (second, sorted(int8_only[1]))


def test_it_needs_boto3_and_orjson_alone() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import loader.app;"
        "print(json.dumps([name for name in sys.modules if name not in before]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in json.loads(ran.stdout)}
    assert not {"numpy", "onnxruntime", "tokenizers", "rich", "export"} & loaded
    assert {"boto3", "orjson", "loader", "handler"} <= loaded


def test_a_manifest_is_what_the_bucket_has(bucket: Any, efs: Path) -> None:
    load("v1")
    manifest: Manifest = open_artifact(efs / MODEL_NAME).manifest
    stored = bucket.get_object(Bucket=BUCKET, Key=f"{MODEL_NAME}/v1/{MANIFEST}")["Body"].read()
    assert (efs / MODEL_NAME / "v1" / MANIFEST).read_bytes() == stored == manifest.to_json()
