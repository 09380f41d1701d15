"""The loader: from S3 to the file system whole or not at all, against moto and under the real runtime client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest

from artifact import store
from artifact.manifest import CHECKSUM, MANIFEST, MODEL_FILES, TOKENIZER, VOCABULARY, Manifest, open_artifact
from export.manifest import file_entry, reduced
from handler.embedder import Embedder
from loader import app, errors
from tests.support.cloud import BUCKET, Cloud, cloud, int8_only, isolated, moto, put_version, recycle, wait_until
from tests.support.servers import MODEL_NAME, ROOT, Answer, Local, send

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
    expected: dict[str, Any] = {"version": "v1", "previous": None, "copied": True, "size": size, "removed": []}
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


@pytest.mark.parametrize("current", ["v1", "v2"])
def test_load_replaces_the_damaged_files_alone(bucket: Any, efs: Path, current: str) -> None:
    """Running environments have mapped the others, of whatever version: NFS keeps no file without a name."""
    load("v1")
    load(current)
    folder = efs / MODEL_NAME / "v1"
    damaged = folder / MODEL_FILES["int8"]
    damaged.write_bytes(b"damaged")
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    with damaged.open("rb") as served:
        assert load("v1")["copied"] is True
        assert os.fstat(served.fileno()).st_nlink == 1
        assert served.read() == b"damaged"
    after = {path.name: path.stat().st_ino for path in folder.iterdir() if path.name in before}
    assert [name for name in before if before[name] != after[name]] == [damaged.name]
    assert (in_use(efs), versions_of(efs)) == ("v1", sorted({"v1", current}))
    load("v2")
    assert call("prune", keep=0)["removed"] == ["v1"], "with what it kept"


def test_load_copies_what_cannot_be_read_and_list_tells_it(bucket: Any, efs: Path) -> None:
    """Root reads what it likes, unless it is started without the capabilities for that."""
    prefix = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root reads all files, and setpriv, which takes that from it, is missing")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
    code = """
import json, sys
from loader import app
for event in sys.argv[1:]:
    try:
        result = app.lambda_handler(json.loads(event), None)
    except Exception as error:
        result = [type(error).__name__, str(error)]
    print(json.dumps(result))
"""

    def run(*events: tuple[str, dict[str, object]]) -> list[Any]:
        arguments = [json.dumps({"action": action, "model": MODEL_NAME, **fields}) for action, fields in events]
        command = [*prefix, sys.executable, "-c", code, *arguments]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in ran.stdout.splitlines()][1::2]  # between them are those of the log

    load("v1")
    load("v2")
    folder = efs / MODEL_NAME
    for path in (folder / "v1" / TOKENIZER, folder / "v1" / MANIFEST, folder / "v1"):
        path.chmod(0)
        listed, used, loaded = run(("list", {}), ("use", {"version": "v1"}), ("load", {"version": "v1"}))
        problems = {each["version"]: each["problem"] for each in listed["versions"]}
        assert (listed["current"], problems["v2"]) == ("v2", None)
        assert f"cannot read {folder / 'v1'}" in problems["v1"]
        assert "Permission denied" in problems["v1"]
        assert used[0] == "VersionCorruptError"
        assert f"cannot read {folder / 'v1'}" in used[1]
        if path.name == "v1":  # there is nothing to be written in it
            path.chmod(0o755)
            assert loaded[0] == "StorageError"
            assert str(path) in loaded[1]
        else:
            assert loaded["copied"] is True
            assert in_use(efs) == "v1"
            load("v2")
    (folder / "current").chmod(0)
    folder.chmod(0)
    (unreadable,) = run(("list", {}))
    folder.chmod(0o755)
    assert unreadable[0] == "StorageError"
    assert unreadable[1].startswith(f"cannot read {folder}: Permission denied")
    listed, pruned, loaded = run(("list", {}), ("prune", {"keep": 0}), ("load", {"version": "v1"}))
    assert (listed["current"], len(listed["versions"])) == (None, 2)
    assert (pruned[0], loaded["removed"]) == ("StorageError", [])
    assert f"cannot read {folder / 'current'}" in pruned[1]
    assert in_use(efs) == "v1"


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
    assert call("prune", keep=1) == {"removed": ["v2"], "leftovers": 1, "problems": []}
    assert call("prune", keep=0) == {"removed": ["v3"], "leftovers": 0, "problems": []}
    assert (in_use(efs), versions_of(efs)) == ("v1", ["v1"])
    assert app.lambda_handler({"action": "prune", "model": "other", "keep": 0}, None)["removed"] == []
    assert not (efs / "other").exists()


def test_nothing_is_removed_while_the_version_in_use_is_unknown(
    bucket: Any, efs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP_VERSIONS", "0")
    load("v1")
    current = efs / MODEL_NAME / "current"
    current.write_bytes(b"\xff")
    with pytest.raises(store.StorageError, match=r"current: .* no version is removed while the one in use is unknown"):
        call("prune", keep=0)
    assert load("v2") | {"size": 0} == {"version": "v2", "previous": None, "copied": True, "size": 0, "removed": []}
    assert versions_of(efs) == ["v1", "v2"]
    assert load("v3")["removed"] == ["v1"]


def make_folder(path: Path, mode: int = 0o700) -> None:
    path.mkdir()
    (path / "note").touch()
    path.chmod(mode)


STRAYS: dict[str, Callable[[Path], object]] = {
    "a symbolic link": lambda path: path.symlink_to("v2"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a plain file": Path.touch,
    "a pipe": os.mkfifo,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a folder": make_folder,
    "an unreadable folder": lambda path: make_folder(path, 0),
}


@pytest.mark.parametrize("kind", STRAYS)
def test_strays_jam_nothing(kind: str, bucket: Any, efs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named as our leftovers are goes, all else stays, and what links lead to stays in any case."""
    monkeypatch.setenv("KEEP_VERSIONS", "0")
    load("v1")
    load("v2")
    folder = efs / MODEL_NAME
    ours, foreign = (
        (".staging-note", ".staging-1", ".staging-current"),
        ("v0", "notes.txt", ".note", ".current.partial"),
    )

    def put_strays() -> None:
        for name in (*ours, *foreign):
            if not os.path.lexists(folder / name):
                STRAYS[kind](folder / name)

    put_strays()
    assert call("prune", keep=0) == {"removed": ["v1"], "leftovers": 3, "problems": []}
    put_strays()
    assert load("v3")["removed"] == []
    put_strays()
    assert call("use", version="v2")["previous"] == "v3"
    listed = [each["version"] for each in call("list")["versions"] if each["intact"]]
    assert (call("list")["current"], listed) == ("v2", ["v3", "v2"])
    assert load("v1")["removed"] == ["v3"]
    left = {*foreign, ".lock", "current", "v1", "v2"}
    assert {path.name for path in folder.iterdir()} == left
    assert store.is_intact(folder / "v2")
    with pytest.raises(errors.LoaderError):
        call("use", version="v0")
    assert in_use(efs) == "v1"
    if kind.endswith("folder"):
        assert (folder / "v0" / "note").exists()


@pytest.mark.parametrize("kind", STRAYS)
def test_what_is_in_the_way_is_named(kind: str, bucket: Any, efs: Path) -> None:
    load("v2")
    folder = efs / MODEL_NAME
    found = {"a dangling link": "a symbolic link", "an unreadable folder": "a folder"}.get(kind, kind)
    if found != "a folder":
        STRAYS[kind](folder / "v3")
        with pytest.raises(store.StorageError, match=f"/v3 is in the way: it is {found}, not a folder: move it"):
            load("v3")
        (folder / "v3").unlink()
    (folder / ".lock").unlink()
    if kind != "a plain file":
        STRAYS[kind](folder / ".lock")
        for action, fields in (("load", {"version": "v3"}), ("use", {"version": "v2"}), ("prune", {"keep": 0})):
            with pytest.raises(store.StorageError, match=rf"/\.lock is in the way: it is {found}, not a file: move it"):
                call(action, **fields)
        assert [each["intact"] for each in call("list")["versions"]] == [True]
        (folder / ".lock").rename(efs / "aside")
    (folder / "current").unlink()
    STRAYS[kind](folder / "current")
    assert call("list")["current"] is None
    if found == "a folder":
        for action, fields in (("load", {"version": "v3"}), ("use", {"version": "v2"})):
            with pytest.raises(store.StorageError, match=f"/current is in the way: it is {found}, not a file: move it"):
                call(action, **fields)
        (folder / "current").rename(efs / "current")
    load("v3")
    assert (in_use(efs), sorted(path.name for path in folder.iterdir())) == ("v3", [".lock", "current", "v2", "v3"])
    folder.rename(efs / "elsewhere")
    if found != "a folder":
        STRAYS[kind](folder)
        with pytest.raises(store.StorageError, match=f"{folder} is in the way: it is {found}, not a folder: move it"):
            load("v1")
        assert call("list") == {"current": None, "versions": []}
        assert call("prune", keep=0)["removed"] == []


def test_a_lock_that_is_a_link_leaves_its_target_as_it_was(bucket: Any, efs: Path) -> None:
    load("v1")
    for name in (".lock", ".current.partial"):
        (efs / MODEL_NAME / name).unlink(missing_ok=True)
        (efs / MODEL_NAME / name).symlink_to(f"v1/{TOKENIZER}")
    with pytest.raises(store.StorageError, match=r"/\.lock is in the way: it is a symbolic link"):
        call("use", version="v1")
    (efs / MODEL_NAME / ".lock").unlink()
    call("use", version="v1")
    assert (in_use(efs), versions_of(efs)) == ("v1", ["v1"])


def test_what_cannot_be_removed_stops_nothing_else(bucket: Any, efs: Path) -> None:
    """File systems that are mounted in the model folder, on what looks like ours."""
    for version in ("v1", "v2", "v3", "v4"):
        load(version)
    folder = efs / MODEL_NAME
    mounts = [folder / name for name in ("v1/inner", "v2", ".staging-1", ".staging-2/inner")]
    with ExitStack() as stack:
        for path in mounts:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(mounted(path, "size=1m"))
            (path / "note").touch()
            (path / MANIFEST).touch()
        (folder / ".staging-9").mkdir()
        for removed in (["v3"], []):
            result = call("prune", keep=0)
            assert (result["removed"], result["leftovers"]) == (removed, len(removed))
            assert len(result["problems"]) == 4
            for path, problem in zip(sorted(mounts), sorted(result["problems"]), strict=True):
                assert problem.startswith(f"cannot remove {folder / path.relative_to(folder).parts[0]}: "), problem
                assert problem.endswith("a file system is mounted there")
        assert all((path / "note").exists() for path in mounts)
        load("v3")
        assert in_use(efs) == "v3"
        assert store.is_intact(folder / "v1"), "it was removed in part"


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
        ({"action": "list", "model": MODEL_NAME, "version": "v1"}, "'version' is unknown"),
        ({"action": "list", "model": "../other"}, r"model is '\.\./other'"),
        ({"action": "list", "model": ""}, "model is ''"),
        ({"action": "load", "model": MODEL_NAME, "version": ".."}, r"version is '\.\.'"),
        ({"action": "use", "model": MODEL_NAME, "version": "v1/../v2"}, "version is 'v1/../v2'"),
        (
            {"action": "load", "model": MODEL_NAME, "version": "current"},
            "version is 'current'.* but not current or a name",
        ),
        ({"action": "use", "model": MODEL_NAME, "version": "CURRENT"}, "version is 'CURRENT'"),
        ({"action": "load", "model": MODEL_NAME, "version": "nul"}, "version is 'nul'"),
        ({"action": "load", "model": MODEL_NAME, "version": "v1."}, r"version is 'v1\.'"),
        ({"action": "load", "model": MODEL_NAME, "version": ".v1"}, r"version is '\.v1'"),
        ({"action": "load", "model": "CON", "version": "v1"}, "model is 'CON'"),
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


def list_manifest(data: dict[str, Any]) -> None:
    data["files"][MANIFEST] = data["files"][TOKENIZER]


def wrong_crc32(data: dict[str, Any]) -> None:
    data["files"][TOKENIZER]["crc32"] ^= 1


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
        (manifest_key, b"{", errors.ObjectCorruptError, "is not a manifest"),
        (
            manifest_key,
            manifest.replace(b'"dimensions": 384', b'"dimensions": 385'),
            errors.ObjectCorruptError,
            "crc32",
        ),
        (manifest_key, bytes(1 << 20) + b"\0", errors.ObjectCorruptError, "has 1048577 bytes, too many for a manifest"),
        (
            manifest_key,
            change_manifest(manifest, escape),
            errors.ObjectCorruptError,
            "escaped is not a plain file name",
        ),
        (
            manifest_key,
            change_manifest(manifest, list_manifest),
            errors.ObjectCorruptError,
            r"files\.manifest\.json is the manifest itself",
        ),
        (
            manifest_key,
            change_manifest(manifest, wrong_crc32),
            errors.ObjectCorruptError,
            r"tokenizer\.json has CRC-32 .*, the manifest says",
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
    with pytest.raises(errors.BucketError, match=r"Could not connect.*check that the loader's subnets reach S3"):
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
    with pytest.raises(store.StorageError, match="absent, which is not a folder: set it to where EFS is mounted"):
        call("list")


def test_the_lock_is_waited_for_and_then_named(bucket: Any, efs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("v1")
    monkeypatch.setattr(app, "LOCK_SECONDS", 0.3)
    with store.locked(efs / MODEL_NAME):
        for action in ("load", "use"):
            with pytest.raises(store.BusyError, match=rf"for over 0\.3 s and holds .*{MODEL_NAME}/\.lock: try again"):
                call(action, version="v1")
        with pytest.raises(store.BusyError):
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


def kill_at_each_step(efs: Path, version: str, means: str) -> list[dict[str, Any]]:
    """What a reader finds before and after each load that was killed, and after one more."""
    if means == "strace" and not shutil.which("strace"):
        pytest.skip("strace is missing, install it with: apt-get install strace")
    command = [sys.executable, "-m", "tests.programs.kill_loader", str(efs), MODEL_NAME, version, means]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "Operation not permitted" in ran.stderr and not ran.stdout:
        pytest.skip("strace may not trace other processes here")
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {line["status"] for line in lines} == {-signal.SIGKILL, 0}
    assert len([line for line in lines if line["status"]]) > 10
    for line in lines:
        assert (line["again"], line["then"]["version"], line["then"]["problem"]) == (0, version, None), line
        assert line["leftovers"] == 0, line
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("means", ["audit", "strace"])
def test_killed_at_any_step_a_reader_finds_a_whole_version(bucket: Any, efs: Path, means: str) -> None:
    """kill -9 before the first, second, ... operation on the file system."""
    load("v1")
    lines = kill_at_each_step(efs, "v2", means)
    for line in lines:
        assert line["after"]["problem"] is None, line
        assert line["status"] != 0 or line["after"]["version"] == "v2"
    assert {line["after"]["version"] for line in lines if line["status"]} == {"v1", "v2"}


@pytest.mark.slow
def test_killed_while_it_mends_no_file_is_missing_or_was_touched_needlessly(bucket: Any, efs: Path) -> None:
    load("v1")
    damaged = [TOKENIZER, MODEL_FILES["int8"]]
    for name in damaged:
        (efs / MODEL_NAME / "v1" / name).write_bytes(b"damaged")
    for line in kill_at_each_step(efs, "v1", "strace" if shutil.which("strace") else "audit"):
        before, after, then = (line[when]["files"] for when in ("before", "after", "then"))
        for files in (after, then):
            assert set(before) <= set(files), line
            for name in set(before) - set(damaged):
                assert before[name] == files[name], line
        for name in damaged:
            assert before[name] in after.values(), "the damaged file has no name any more"
            assert before[name] in then.values()
            assert before[name] != then[name]


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


@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
def test_a_file_system_that_is_full_at_any_moment_loses_nothing(bucket: Any, efs: Path, limit: str) -> None:
    """With room for ever more bytes, or for ever more files."""
    needed = sum(FILES.values())
    rooms = [*range(0, needed, needed // 6), *range(needed, needed + 65_536, 8192)] if limit == "size" else range(10)
    with mounted(efs, "size=12m"):
        load("v1")
        found = os.statvfs(efs)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize if limit == "size" else found.f_files - found.f_ffree
        fits = []
        for room in rooms:
            subprocess.run(["mount", "-o", f"remount,{limit}={used + room}", efs], check=True)
            try:
                load("v2")
            except errors.StorageFullError:
                fits.append(False)
                assert in_use(efs) == "v1"
                assert versions_of(efs) in (["v1"], ["v1", "v2"]), "the last that needs room is the new `current`"
            else:
                fits.append(True)
                assert (in_use(efs), versions_of(efs)) == ("v2", ["v1", "v2"])
                (efs / MODEL_NAME / "current").write_text("v1\n")
            assert call("prune", keep=0)["leftovers"] == 0
            now = os.statvfs(efs)
            assert [now.f_blocks - now.f_bfree, now.f_files - now.f_ffree] == [
                found.f_blocks - found.f_bfree,
                found.f_files - found.f_ffree,
            ]
    assert fits == sorted(fits)
    assert set(fits) == {False, True}


def test_a_damaged_version_on_a_full_file_system_keeps_its_files(bucket: Any, efs: Path) -> None:
    with mounted(efs, "size=5m"):
        load("v1")
        path = efs / MODEL_NAME / "v1" / (MODEL_FILES["int8"] + "_data")
        path.write_bytes(bytes(path.stat().st_size))
        before = {each.name: each.stat().st_ino for each in path.parent.iterdir()}
        with pytest.raises(errors.StorageFullError):
            load("v1")
        assert {each.name: each.stat().st_ino for each in path.parent.iterdir()} == before
        assert call("list")["versions"][0]["intact"] is False
        subprocess.run(["mount", "-o", "remount,size=12m", efs], check=True)
        assert load("v1")["copied"] is True
        assert versions_of(efs) == ["v1"]


def test_a_file_system_that_cannot_be_written_to_is_named(bucket: Any, efs: Path) -> None:
    with mounted(efs, "size=20m"):
        load("v1")
        subprocess.run(["mount", "-o", "remount,ro", efs], check=True)
        for action in ("load", "use"):
            with pytest.raises(store.StorageError, match=r"cannot be written to .*ClientWrite, and the access point's"):
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


@pytest.mark.slow
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
    assert not {"numpy", "onnxruntime", "tokenizers", "rich", "export", "handler"} & loaded
    assert {"boto3", "orjson", "loader", "artifact"} <= loaded


def test_a_manifest_is_what_the_bucket_has(bucket: Any, efs: Path) -> None:
    load("v1")
    manifest: Manifest = open_artifact(efs / MODEL_NAME).manifest
    stored = bucket.get_object(Bucket=BUCKET, Key=f"{MODEL_NAME}/v1/{MANIFEST}")["Body"].read()
    assert (efs / MODEL_NAME / "v1" / MANIFEST).read_bytes() == stored == manifest.to_json()
