"""Faults provoked for real and survived: a vector is the right one to the bit, or there is none.

Over HTTP under the real runtime client wherever that is possible; where many cases are tried, in this process.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import orjson
import pytest

from artifact import store
from artifact.manifest import MANIFEST, MODEL_FILES, TOKENIZER, ArtifactError, Manifest, open_artifact, parse_manifest
from benchmarks import slow_files
from benchmarks.cgroups import Limits, limited, unavailable
from export.manifest import file_entry
from handler.embedder import Embedder
from handler.pace import Paces
from loader import app as loader
from loader.errors import VersionCorruptError
from tests.support.events import LoadApp
from tests.support.servers import MODEL_NAME, ROOT, Answer, Local, lines_of

TEXT = "vitamin d"
REQUEST = json.dumps({"text": TEXT}).encode()
NAMES = ("manifest.json", "vocab.txt", "model_int8.onnx", "model_int8.onnx_data")
"""What a start reads."""
RETRY_AFTER = {"model_unavailable": "5", "deadline_exceeded": "1"}
Start = Callable[..., Local]
StartLimited = Callable[..., tuple[Local, Limits]]


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A model folder that may be damaged: version `v1`, INT8 alone. Its parent is a MODEL_CACHE_DIR."""
    folder = tmp_path / "models" / MODEL_NAME
    write_version(model_folder, folder / "v1")
    (folder / "current").write_text("v1\n")
    yield folder
    shutil.rmtree(folder)


def write_version(model_folder: Path, target: Path) -> None:
    """Copy the INT8 part of the version in use."""
    artifact = open_artifact(model_folder)
    target.mkdir(parents=True)
    for name in (TOKENIZER, *artifact.files_of("int8")):
        shutil.copyfile(Path(artifact.folder, name), target / name)
    write_manifest(target, int8_alone(artifact.manifest, target.name))


def int8_alone(manifest: Manifest, version: str) -> Manifest:
    files = {name: entry for name, entry in manifest.files.items() if name in (TOKENIZER, *NAMES)}
    return manifest._replace(version=version, files=files, precisions={"int8": manifest.precisions["int8"]})


def write_manifest(version: Path, manifest: Manifest) -> None:
    (version / MANIFEST).write_bytes(manifest.to_json())


@pytest.fixture
def start_under(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Start `python -m local` by way of a line of shell, whose last command gets it as its arguments."""

    def start_one(shell: str, **variables: str) -> Local:
        wrapper = tmp_path / "python"
        wrapper.write_text(f'#!/bin/sh\n{shell} {shlex.quote(sys.executable)} "$@"\n')
        wrapper.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(wrapper))
            return start(**variables)

    return start_one


def check_vector(answer: Answer, int8: Embedder, text: str = TEXT) -> None:
    assert answer.status == 200, answer.body
    np.testing.assert_array_equal(np.float32(answer.json()["embedding"]), int8.embed([text]).vectors[0])


def assert_incident(local: Local, path: str, body: Any, kind: str, code: str, message: str) -> None:
    """A request is answered by a 500, and the log has the fault and the request."""
    answer = local.send(path, json.dumps(body).encode())
    check_error(answer, 500, code, message)
    incident, record = lines_of(local, 2, answer.headers["x-request-id"])
    assert incident["incident"] == kind
    assert (record["status"], record["level"], record["error"]["code"]) == (500, "ERROR", code)


def check_error(answer: Answer, status: int, code: str, *parts: str) -> str:
    """Check an error's shape, and that its message has these parts. The message."""
    body = answer.json()
    assert answer.status == status, body
    assert set(body) == {"error", "request_id"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "server_error" if status >= 500 else "invalid_request_error")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.get("retry-after") == RETRY_AFTER.get(code)
    for part in parts:
        assert part in error["message"]
    return str(error["message"])


def check_killed(answer: Answer) -> None:
    """What a Function URL answers where the function's process has ended."""
    assert (answer.status, answer.body) == (502, b"Internal Server Error")


def ask(app: ModuleType, body: bytes = REQUEST, method: str = "POST", path: str = "/embed") -> Answer:
    """What a Function URL's event gets from a handler in this process."""
    context = {"http": {"method": method, "path": path}, "requestId": "one"}
    event = {"version": "2.0", "rawPath": path, "headers": {}, "requestContext": context, "body": body.decode()}
    result = app.lambda_handler(event, None)
    return Answer(result["statusCode"], result["headers"], result["body"].encode())


def health(app: ModuleType) -> Answer:
    return ask(app, b"", "GET", "/health")


def pid_of_function(local: Local) -> int:
    """The process that runs the handler: the only child of `python -m local`."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            _, parent = path.read_text().rpartition(")")[2].split()[:2]  # proc_pid_stat(5): state, ppid
            children += [int(path.parent.name)] * (int(parent) == local.process.pid)
    (pid,) = children
    return pid


def kill_function(local: Local) -> None:
    """The next request meets a fresh environment."""
    pid = pid_of_function(local)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip(path: Path, position: int, bit: int) -> None:
    """Change one bit; size and everything else stay."""
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 1 << bit]))


def flip_last(path: Path) -> None:
    """The last byte that is not white space: a manifest or `current` ends with a newline, which means nothing."""
    flip(path, path.stat().st_size - (2 if path.name in ("current", MANIFEST) else 1), 1)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "cut": cut,
    "empty": empty,
    "a folder": replace_by_folder,
    "flipped": flip_last,
}


def path_of(model: Path, name: str) -> Path:
    return model / name if name == "current" else model / "v1" / name


@contextmanager
def damaged(path: Path, damage: Callable[[Path], object]) -> Iterator[None]:
    """A file is put right when the block ends."""
    whole = path.read_bytes()
    damage(path)
    yield
    if path.is_dir():
        path.rmdir()
    path.write_bytes(whole)


@pytest.mark.parametrize("name", ["current", *NAMES])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_503_until_it_is_whole(
    load_app: LoadApp, model: Path, name: str, damage: str, int8: Embedder
) -> None:
    path = path_of(model, name)
    with damaged(path, DAMAGES[damage]):
        app = load_app(MODEL_CACHE_DIR=str(model.parent))
        # A wrong `current` names a version that is not there, and that is what the message is about.
        named = str(model) if name == "current" else str(path)
        for _ in range(2):
            check_error(ask(app), 503, "model_unavailable", named)
    check_vector(ask(app), int8)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("current", "missing"),
        ("manifest.json", "cut"),
        ("vocab.txt", "a folder"),
        ("model_int8.onnx", "missing"),
        ("model_int8.onnx", "flipped"),
        ("model_int8.onnx_data", "empty"),
        ("model_int8.onnx_data", "flipped"),
    ],
)
def test_a_damaged_file_is_503_over_http(start: Start, model: Path, name: str, damage: str, int8: Embedder) -> None:
    path = path_of(model, name)
    with damaged(path, DAMAGES[damage]):
        local = start(MODEL_CACHE_DIR=str(model.parent))
        check_error(local.send("/embed", REQUEST), 503, "model_unavailable", str(model))
        check_error(local.send("/health"), 503, "model_unavailable", str(model))
    check_vector(local.send("/embed", REQUEST), int8)
    assert local.send("/health").json() == {"status": "ok"}


def test_a_model_that_comes_late_is_served(start: Start, model: Path, int8: Embedder) -> None:
    model.parent.rename(model.parent.with_name("elsewhere"))
    local = start(MODEL_CACHE_DIR=str(model.parent))
    check_error(local.send("/embed", REQUEST), 503, "model_unavailable", str(model), "python -m export")
    model.parent.with_name("elsewhere").rename(model.parent)
    check_vector(local.send("/embed", REQUEST), int8)


def test_another_format_is_503_and_tells_both(start: Start, model: Path, int8: Embedder) -> None:
    manifest = open_artifact(model).manifest
    with damaged(
        model / "v1" / MANIFEST, lambda path: write_manifest(path.parent, manifest._replace(format_version=2))
    ):
        local = start(MODEL_CACHE_DIR=str(model.parent))
        answer = local.send("/embed", REQUEST)
        check_error(answer, 503, "model_unavailable", "format_version is 2, this reader knows 5", MANIFEST)
    check_vector(local.send("/embed", REQUEST), int8)


def positions(size: int, count: int, seed: str) -> list[tuple[int, int]]:
    """Places of bits: the first and the last bytes, and others at random."""
    chosen = random.Random(seed)
    places = [0, 1, size // 2, size - 2, size - 1, *(chosen.randrange(size) for _ in range(count))]
    return [(place, chosen.randrange(8)) for place in places]


@pytest.mark.parametrize("name", NAMES[1:])
def test_one_flipped_bit_gives_no_vector(load_app: LoadApp, model: Path, name: str, int8: Embedder) -> None:
    path = path_of(model, name)
    app = None
    for place, bit in positions(path.stat().st_size, 20, name):
        flip(path, place, bit)
        app = app or load_app(MODEL_CACHE_DIR=str(model.parent))
        check_error(ask(app), 503, "model_unavailable", f"{path} is damaged")
        flip(path, place, bit)
    assert app is not None
    check_vector(ask(app), int8)


def test_any_flipped_bit_of_the_manifest_is_found_or_means_nothing(model: Path) -> None:
    """All of them, in this process: most would give a manifest that looks right."""
    whole = (model / "v1" / MANIFEST).read_bytes()
    manifest = parse_manifest(orjson.loads(whole))
    harmless = 0
    for place, bit in ((place, bit) for place in range(len(whole)) for bit in range(8)):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit
        try:
            found = parse_manifest(orjson.loads(changed))
        except ValueError:
            continue
        assert found == manifest, f"bit {bit} of byte {place}"
        harmless += 1
    assert harmless < len(whole) / 100


@pytest.mark.parametrize("name", ["current", MANIFEST])
def test_one_flipped_bit_of_a_short_file_gives_the_right_vector_or_none(
    load_app: LoadApp, model: Path, name: str, int8: Embedder
) -> None:
    path = path_of(model, name)
    for place, bit in positions(path.stat().st_size, 15, name):
        flip(path, place, bit)
        app = load_app(MODEL_CACHE_DIR=str(model.parent))
        answer = ask(app)
        if answer.status != 200:
            check_error(answer, 503, "model_unavailable", str(model))
        else:
            check_vector(answer, int8)
        flip(path, place, bit)
    check_vector(ask(app), int8)


def test_unreadable_files_are_503_by_name(start_under: Start, model: Path, int8: Embedder) -> None:
    """Root reads what it likes, unless it is started without the capabilities for that."""
    shell = "exec"
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root reads all files, and setpriv, which takes that from it, is missing")
        shell = "exec setpriv --bounding-set=-dac_override,-dac_read_search --"
    paths = [*(path_of(model, name) for name in ("current", *NAMES)), model / "v1", model]
    modes = {path: path.stat().st_mode for path in paths}
    model.chmod(0)
    local = start_under(shell, MODEL_CACHE_DIR=str(model.parent))
    model.chmod(modes[model])
    for path in paths:
        path.chmod(0)
        answer = local.send("/embed", REQUEST)
        path.chmod(modes[path])
        check_error(answer, 503, "model_unavailable", str(path), "Permission denied")
    check_vector(local.send("/embed", REQUEST), int8)


def install(model_folder: Path, model: Path, version: str) -> None:
    """Put a copy of the version in use into use under another name, as an export does."""
    with store.staging(model) as workdir:
        write_version(model_folder, workdir / version)
        store.install(workdir / version, model, version)


def test_a_version_replaced_while_serving_is_served_from_the_next_start(
    start: Start, model_folder: Path, model: Path, int8: Embedder
) -> None:
    local = start(MODEL_CACHE_DIR=str(model.parent))
    texts = [f"{TEXT} {number}" for number in range(120)]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(local.send, "/embed", json.dumps({"text": text}).encode()) for text in texts]
        install(model_folder, model, "v2")
        shutil.rmtree(model / "v1")
        for text, answer in zip(texts, answers, strict=True):
            check_vector(answer.result(), int8, text)
    check_vector(local.send("/embed", REQUEST), int8)
    assert local.send("/info").json()["artifact_version"] == "v1"
    kill_function(local)
    assert local.send("/info").json()["artifact_version"] == "v2"
    check_vector(local.send("/embed", REQUEST), int8)


def test_loading_while_versions_come_and_go_gives_one_whole_version(
    model_folder: Path, model: Path, int8: Embedder
) -> None:
    """A reader that met a version on its way out says which file is gone, and the next attempt finds the new one."""
    stop = threading.Event()

    def replace() -> None:
        number = 1
        while not stop.is_set():
            number += 1
            install(model_folder, model, f"v{number}")
            shutil.rmtree(model / f"v{number - 1}")

    expected = int8.embed([TEXT]).vectors
    loaded: set[str] = set()
    messages = []
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        try:
            while len(loaded) < 5:
                try:
                    embedder = Embedder.load(model)
                except ArtifactError as error:
                    messages.append(str(error))
                    continue
                np.testing.assert_array_equal(embedder.embed([TEXT]).vectors, expected)
                loaded.add(embedder.manifest.version)
        finally:
            stop.set()
        replacing.result()
    assert all(str(model) in message for message in messages)


@pytest.fixture
def failing_model(model: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A MODEL_CACHE_DIR on a file system that fails, and the file that says where it does."""
    if reason := slow_files.unavailable():
        pytest.skip(reason)
    mount, faults = tmp_path / "mount", tmp_path / "faults"
    mount.mkdir()
    faults.touch()
    command = [sys.executable, "-m", "tests.programs.failing_files", str(model.parent), str(mount), str(faults)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            while not mount.is_mount():
                if process.poll() is not None:
                    pytest.skip(f"cannot mount {mount}: the file system ended with status {process.returncode}")
                time.sleep(0.01)
            yield mount, faults
        finally:
            subprocess.run(["umount", "--lazy", str(mount)], check=False, stderr=subprocess.DEVNULL)
            process.terminate()


WHOLE = (0, 1 << 30)


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "failing"),
    [
        *((name, WHOLE) for name in NAMES[:-1]),
        ("model_int8.onnx_data", (0, 1)),
        ("model_int8.onnx_data", (20_000_000, 20_000_001)),
        ("model_int8.onnx_data", WHOLE),
    ],
)
def test_an_unreadable_disk_is_503_until_it_reads_again(
    start: Start, failing_model: tuple[Path, Path], name: str, failing: tuple[int, int], int8: Embedder
) -> None:
    cache, faults = failing_model
    faults.write_text("{} {} {}\n".format(name, *failing))
    local = start(MODEL_CACHE_DIR=str(cache))
    path = str(cache / MODEL_NAME / "v1" / name)
    check_error(local.send("/embed", REQUEST), 503, "model_unavailable", path, "Input/output error")
    faults.write_text("")
    check_vector(local.send("/embed", REQUEST), int8)


@pytest.mark.parametrize("name", NAMES)
def test_an_unreadable_file_is_not_intact_and_is_replaced(
    failing_model: tuple[Path, Path],
    model: Path,
    model_folder: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    int8: Embedder,
) -> None:
    """For the loader and for what ends an export."""
    cache, faults = failing_model
    folder = cache / MODEL_NAME
    install(model_folder, folder, "v2")
    monkeypatch.setenv("MODEL_CACHE_DIR", str(cache))
    faults.write_text(f"{(model / 'v1' / name).stat().st_ino} 0 {1 << 30}\n")
    problem = f"cannot read {folder}/v1/{name}: Input/output error"
    listed = loader.lambda_handler({"action": "list", "model": MODEL_NAME}, None)
    problems = {each["version"]: each["problem"] for each in listed["versions"]}
    assert problems["v1"].startswith(problem)
    assert problems["v2"] is None
    with pytest.raises(VersionCorruptError, match=problem):
        loader.lambda_handler({"action": "use", "model": MODEL_NAME, "version": "v1"}, None)
    assert open_artifact(folder).manifest.version == "v2"
    intact = {path.name: path.stat().st_ino for path in (model / "v1").iterdir() if path.name != name}
    install(model_folder, folder, "v1")
    np.testing.assert_array_equal(Embedder.load(folder).embed([TEXT]).vectors, int8.embed([TEXT]).vectors)
    assert store.current_of(folder) == "v1"
    assert intact.items() <= {path.name: path.stat().st_ino for path in (model / "v1").iterdir()}.items()


def test_weights_that_cannot_be_read_any_more_end_the_process_and_no_other(
    start: Start, failing_model: tuple[Path, Path], int8: Embedder
) -> None:
    """A mapped page that the system has dropped and cannot read again ends the process by SIGBUS: no vector."""
    cache, faults = failing_model
    weights = cache / MODEL_NAME / "v1" / "model_int8.onnx_data"
    local = start(MODEL_CACHE_DIR=str(cache))
    check_vector(local.send("/embed", REQUEST), int8)
    faults.write_text(f"{weights.name} 0 {weights.stat().st_size}\n")
    weights.open("rb").close()  # drops the pages
    check_killed(local.send("/embed", REQUEST))
    local.wait_for_log("SIGBUS")
    faults.write_text("")
    check_vector(local.send("/embed", REQUEST), int8)


def test_weights_cut_while_serving_end_the_process_and_are_named_by_the_next(
    start: Start, model: Path, int8: Embedder
) -> None:
    local = start(MODEL_CACHE_DIR=str(model.parent))
    check_vector(local.send("/embed", REQUEST), int8)
    weights = model / "v1" / "model_int8.onnx_data"
    with damaged(weights, empty):
        check_killed(local.send("/embed", REQUEST))
        local.wait_for_log("SIGBUS")
        check_error(local.send("/embed", REQUEST), 503, "model_unavailable", f"{weights} has 0 bytes")
    check_vector(local.send("/embed", REQUEST), int8)


def multiply_output(model: Path, factor: float) -> None:
    """Make a version `bad` whose hidden states are multiplied, and put it into use. All its checksums are right."""
    bad = model / "bad"
    (model / "v1").rename(bad)
    proto = onnx.load(bad / "model_int8.onnx", load_external_data=False)
    (output,) = proto.graph.output
    proto.graph.node[-1].output[0] = "right"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    proto.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [output.name]))
    onnx.save(proto, bad / "model_int8.onnx")
    manifest = parse_manifest(orjson.loads((bad / MANIFEST).read_bytes()))
    files = {**manifest.files, "model_int8.onnx": file_entry(bad / "model_int8.onnx")}
    write_manifest(bad, manifest._replace(version="bad", files=files))
    (model / "current").write_text("bad\n")


@pytest.mark.parametrize("factor", [np.nan, np.inf, 0.0, 1e30])
def test_a_model_that_computes_nonsense_answers_no_vector(start: Start, model: Path, factor: float) -> None:
    multiply_output(model, factor)
    local = start(MODEL_CACHE_DIR=str(model.parent))
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/embed", {"text": TEXT}),
        ("/embed", {"texts": [TEXT, "b"], "encoding_format": "base64"}),
        ("/", {"inputs": TEXT}),
        ("/v1/embeddings", {"input": TEXT, "model": MODEL_NAME}),
        ("/embed", {"text": TEXT}),
    ]
    for path, body in requests:
        assert_incident(local, path, body, "BadVectorError", "bad_vector", "bad vector for text 0")
    assert local.send("/embed", b"{}").status == 400


@pytest.mark.parametrize("factor", [np.nan, np.inf, 0.0])
@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # numpy's, which end no process outside of tests
def test_nonsense_is_no_vector_without_normalization_either(load_app: LoadApp, model: Path, factor: float) -> None:
    multiply_output(model, factor)
    app = load_app(MODEL_CACHE_DIR=str(model.parent))
    check_error(ask(app, json.dumps({"text": TEXT, "normalize": False}).encode()), 500, "bad_vector")


def set_manifest(model: Path, **fields: Any) -> None:
    """Change fields of version v1's manifest, whose checksum is right afterwards."""
    manifest = parse_manifest(orjson.loads((model / "v1" / MANIFEST).read_bytes()))
    write_manifest(model / "v1", manifest._replace(**fields))


def set_tokenizer(model: Path, part: str, value: dict[str, Any]) -> None:
    """Change a part of version v1's tokenizer."""
    wordpiece = orjson.loads((model / "v1" / MANIFEST).read_bytes())["wordpiece"]
    set_manifest(model, wordpiece=json.dumps(json.loads(wordpiece) | {part: value}))


PANICS: dict[str, tuple[str, dict[str, Any]]] = {
    "while splitting": ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
    "while putting together": (
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        },
    ),
}
"""Settings with which the tokenizer panics: a Rust panic reaches Python as a BaseException that is no Exception."""


@pytest.mark.real_model
@pytest.mark.parametrize("name", PANICS)
def test_a_panic_of_the_tokenizer_is_a_500_with_its_incident(start: Start, model: Path, name: str) -> None:
    set_tokenizer(model, *PANICS[name])
    local = start(MODEL_CACHE_DIR=str(model.parent))
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/embed", {"text": TEXT}),
        ("/embed", {"texts": [TEXT, "word " * 100_000]}),  # in a thread of its own
        ("/v1/embeddings", {"input": TEXT, "model": MODEL_NAME}),
        ("/v1/embeddings", {"input": [101, 7592, 102], "model": MODEL_NAME}),
    ]
    for path, body in requests:
        assert_incident(
            local, path, body, "PanicException", "internal_error", "search the function's log for this request id"
        )
    assert local.send("/embed", b"{}").status == 400


def test_a_panic_in_an_invocation_fails_it_alone(load_app: LoadApp, model: Path) -> None:
    """The runtime reports what is an Exception, and ends the process of what is not."""
    set_tokenizer(model, *PANICS["while splitting"])
    app = load_app(MODEL_CACHE_DIR=str(model.parent))
    with pytest.raises(RuntimeError, match="PanicException: chunk size must be non-zero"):
        app.lambda_handler({"text": TEXT}, None)


def test_a_panic_while_loading_is_told_and_tried_again(
    load_app: LoadApp, model: Path, int8: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (model / "v1" / MANIFEST).read_bytes()
    set_tokenizer(model, "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    app = load_app(MODEL_CACHE_DIR=str(model.parent))
    assert "model not loaded: cannot load" in capsys.readouterr().out
    check_error(ask(app), 503, "model_unavailable", f"cannot load {model}/v1: Precompiled", "python -m export")
    (model / "v1" / MANIFEST).write_bytes(whole)
    check_vector(ask(app), int8)


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "dimensions": ({"dimensions": 383}, "model_int8.onnx has 384 dimensions, the manifest says 383"),
    "no room for a text": ({"max_tokens": 2}, "max_tokens is 2, of which 2 are special tokens"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_manifest_that_does_not_fit_its_model_is_refused(load_app: LoadApp, model: Path, name: str) -> None:
    fields, message = MISFITS[name]
    set_manifest(model, **fields)
    check_error(ask(load_app(MODEL_CACHE_DIR=str(model.parent))), 503, "model_unavailable", message, "python -m export")


def test_a_model_with_another_input_is_refused(load_app: LoadApp, model: Path) -> None:
    path = model / "v1" / "model_int8.onnx"
    proto = onnx.load(path, load_external_data=False)
    proto.graph.input.append(onnx.helper.make_tensor_value_info("bbox", onnx.TensorProto.INT64, ["texts", 4]))
    onnx.save(proto, path)
    manifest = parse_manifest(orjson.loads((model / "v1" / MANIFEST).read_bytes()))
    set_manifest(model, files={**manifest.files, path.name: file_entry(path)})
    app = load_app(MODEL_CACHE_DIR=str(model.parent))
    check_error(ask(app), 503, "model_unavailable", "model_int8.onnx has an input bbox, which is not one of input_ids")


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_more_tokens_than_the_model_has_places_are_a_503_that_health_reports(
    load_app: LoadApp, copy_model: Callable[[str], Path], precision: str, int8: Embedder
) -> None:
    model = copy_model("v1")
    set_manifest(model, max_tokens=600)
    app = load_app(MODEL_CACHE_DIR=str(model.parent), MODEL_PRECISION=precision)
    message = f"{MODEL_FILES[precision]} cannot compute a text of 600 tokens, which the manifest's max_tokens allows"
    long = json.dumps({"text": "word " * 700}).encode()
    for _ in range(2):
        check_error(ask(app, long), 503, "model_unavailable", message, "python -m export")
        check_error(health(app), 503, "model_unavailable", message)
        assert ask(app).status == 200
    importlib.reload(app.service)
    check_error(health(importlib.reload(app)), 503, "model_unavailable", message)


def test_another_fault_in_a_run_is_no_fault_of_the_manifest(
    load_app: LoadApp, monkeypatch: pytest.MonkeyPatch, int8: Embedder
) -> None:
    app = load_app()
    embedder = app.service.loaded_embedder()
    session = embedder._session

    class Failing:
        failed = False

        def run(self, *arguments: Any) -> Any:
            if not self.failed:
                self.failed = True
                raise MemoryError("an arena")
            return session.run(*arguments)

    monkeypatch.setattr(embedder, "_session", Failing())
    check_error(ask(app), 500, "internal_error")
    check_vector(ask(app), int8)
    assert health(app).status == 200


class Panic(BaseException):
    """Stands for what a library raises that is no Exception."""


def test_whatever_a_run_raises_is_a_500(load_app: LoadApp, monkeypatch: pytest.MonkeyPatch, int8: Embedder) -> None:
    app = load_app(MODEL_THREADS="2")
    embedder = app.service.loaded_embedder()
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise Panic("in a run")

        patch.setattr(embedder, "_infer", fail)
        for body in (REQUEST, many(50)):  # in this thread, and in two of their own
            check_error(ask(app, body), 500, "internal_error")
    check_vector(ask(app), int8)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_not_answered(
    load_app: LoadApp, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    app = load_app()

    def stop(*_: object) -> None:
        raise end

    monkeypatch.setattr(app.service, "embed", stop)
    with pytest.raises(end):
        ask(app)


def test_a_check_of_files_that_fails_is_no_check_passed(
    load_app: LoadApp, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], int8: Embedder
) -> None:
    def fail(path: str) -> int:
        raise MemoryError("no buffer for it")

    with monkeypatch.context() as patch:
        patch.setattr("handler.filecheck.crc32", fail)
        app = load_app()
        incident = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert incident["incident"] == "MemoryError"
        check_error(ask(app), 500, "internal_error")
    check_vector(ask(app), int8)


def many(count: int, words: int = 40) -> bytes:
    """A request of many different texts."""
    return json.dumps({"texts": [f"{number} {'vitamin ' * words}" for number in range(count)]}).encode()


def test_a_process_killed_in_a_request_is_a_502_for_it_alone(start: Start, int8: Embedder) -> None:
    local = start()
    pid = pid_of_function(local)
    with ThreadPoolExecutor(3) as pool:
        killed = pool.submit(local.send, "/embed", many(1000))
        local.wait_for_log("START RequestId")
        waiting = [pool.submit(local.send, "/embed", REQUEST) for _ in range(2)]
        time.sleep(0.3)
        assert not killed.done()
        os.kill(pid, signal.SIGKILL)
        check_killed(killed.result())
        for answer in waiting:
            check_vector(answer.result(), int8)
    check_vector(local.send("/embed", REQUEST), int8)
    assert pid_of_function(local) != pid


@pytest.mark.real_model
def test_more_tokens_than_the_time_allows_are_refused_and_nobody_is_killed(start: Start, int8: Embedder) -> None:
    local = start("--timeout", "2")
    for _ in range(2):  # the very first request too
        message = check_error(local.send("/embed", many(1000, words=150)), 413, "too_many_tokens")
        found = re.search(r"the texts have (\d+) tokens; .* can compute (\d+) in the .* s it has: send fewer", message)
        assert found, message
        tokens, enough = map(int, found.groups())
        assert 0 < enough < tokens
        check_vector(local.send("/embed", REQUEST), int8)
    count = max(1, enough // 10 * 1000 // tokens)
    answer = local.send("/embed", many(count))
    expected = int8.embed(json.loads(many(count))["texts"]).vectors
    np.testing.assert_array_equal(np.float32(answer.json()["embeddings"]), expected)
    assert not any("Task timed out" in line for line in local.log)


@pytest.fixture
def start_limited(start: Start) -> Iterator[StartLimited]:
    """Start `python -m local` with a function that has so much memory and CPU at most; and the groups it is in."""
    if reason := unavailable():
        pytest.skip(reason)
    with ExitStack() as stack:

        def start_one(memory_mb: int | None, cpus: float | None, *arguments: str) -> tuple[Local, Limits]:
            limits = stack.enter_context(limited(memory_mb, cpus))
            folders = ":".join(map(str, limits.folders))
            local = start("tests.programs.limited.lambda_handler", *arguments, CGROUPS=folders)
            stack.callback(stop, local)  # before the groups go, or the next process could not enter them
            return local, limits

        yield start_one


def stop(local: Local) -> None:
    local.process.terminate()
    local.process.wait(timeout=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "truncate"), [("a", True), (" ", True), (".", False)], ids=["long words", "white space", "punctuation"]
)
def test_texts_that_take_long_to_tokenize_are_answered_in_time(
    start_limited: StartLimited, text: str, truncate: bool, int8: Embedder
) -> None:
    """With the time that Lambda gives unless told otherwise, and the CPU of 512 MB."""
    local, _ = start_limited(None, 0.29, "--timeout", "3")
    body = json.dumps({"texts": [text * 1_000_000] * 6, "truncate": truncate}).encode()
    answer = local.send("/embed", body, content_type="application/json")
    assert "x-request-id" in answer.headers, answer  # the function's own answer
    if answer.status != 200:
        code = answer.json()["error"]["code"]
        check_error(answer, {"text_too_long": 400, "too_many_tokens": 413, "deadline_exceeded": 503}[code], code)
    check_vector(local.send("/embed", REQUEST), int8)
    assert not any("Task timed out" in line for line in local.log)


@pytest.mark.real_model
def test_a_pace_that_drops_in_a_request_is_503(
    load_app: LoadApp, monkeypatch: pytest.MonkeyPatch, int8: Embedder
) -> None:
    """The embedder believes that it is very fast, begins, and sees that it is not."""
    app = load_app()
    monkeypatch.setattr(app, "RESERVED_SECONDS", 0.0)
    embedder = app.service.loaded_embedder()
    embedder.paces.of(embedder.threads).add(10**7, 1e-3)

    class Context:
        aws_request_id = "one"

        def get_remaining_time_in_millis(self) -> int:
            return 500

    event = {"version": "2.0", "rawPath": "/embed", "requestContext": {"http": {"method": "POST"}}}
    result = app.lambda_handler(event | {"body": many(1000).decode()}, Context())
    answer = Answer(result["statusCode"], result["headers"], result["body"].encode())
    message = check_error(answer, 503, "deadline_exceeded")
    done, tokens = map(int, re.findall(r"(\d+) of (\d+) tokens", message)[0])
    assert 0 < done < tokens
    embedder.paces = Paces()
    check_vector(ask(app), int8)


def test_a_process_out_of_memory_is_a_502_for_it_alone(start_limited: StartLimited, int8: Embedder) -> None:
    local, limits = start_limited(128, None)
    check_vector(local.send("/embed", REQUEST), int8)
    assert not limits.out_of_memory()
    large = {"texts": ["." * 1_000_000] * 5, "truncate": False}
    check_killed(local.send("/embed", json.dumps(large).encode(), content_type="application/json"))
    assert limits.out_of_memory()
    local.wait_for_log("SIGKILL")
    check_vector(local.send("/embed", REQUEST), int8)


READ_ONLY = """set -e
folders=$(awk '$2 !~ "^/(proc|sys)" {print $2}' /proc/mounts)
for folder in $folders; do
    mount -o remount,bind,ro "$folder" || true
done
for folder in $folders "$HOME" "$PWD" /tmp; do
    if touch "$folder/probe" 2> /dev/null; then
        echo "$folder can be written" >&2
        exit 1
    fi
done
exec "$@"
"""


def test_a_read_only_system_is_enough(start_under: Start, tmp_path: Path, int8: Embedder) -> None:
    script = tmp_path / "read-only"
    script.write_text(READ_ONLY)
    command = ["unshare", "--mount", "sh", str(script)]
    probe = subprocess.run(["sh", "-c", '"$@" true', "sh", *command], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"nothing can be made read-only here: {probe.stderr}")
    local = start_under(f"exec {shlex.join(command)}", HOME=str(tmp_path))
    for path in ("/docs", "/openapi.json", "/info", "/health"):
        assert local.send(path).status == 200
    check_vector(local.send("/embed", REQUEST), int8)
    kill_function(local)
    check_vector(local.send("/embed", REQUEST), int8)


def test_nothing_is_written_where_it_could_be(start: Start, tmp_path: Path, int8: Embedder) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    local = start(HOME=str(home), TMPDIR=str(temporary), XDG_CACHE_HOME=str(home / "cache"))
    check_vector(local.send("/embed", REQUEST), int8)
    assert [*home.iterdir(), *temporary.iterdir()] == []


def test_a_clock_that_goes_backwards_changes_nothing(start: Start, int8: Embedder) -> None:
    local = start("tests.programs.falling_clock.lambda_handler")
    for _ in range(3):
        answer = local.send("/embed", REQUEST)
        check_vector(answer, int8)
        assert 0 <= answer.json()["latency"] < 60
    records = lines_of(local, 3)
    stamps = [record["_aws"]["Timestamp"] for record in records]
    assert stamps == sorted(stamps, reverse=True)
    assert all(value >= 0 for record in records for value in [record["latency_ms"], *record["phases_ms"].values()])


def raw_request(local: Local, body: bytes = REQUEST) -> tuple[socket.socket, bytes]:
    """A connection, and a request that may be sent over it in any manner."""
    host, port = local.url.removeprefix("http://").split(":")
    head = f"POST /embed HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return socket.create_connection((host, int(port)), timeout=60), head.encode() + body


def receive(connection: socket.socket) -> Answer:
    data = b"".join(iter(functools.partial(connection.recv, 1 << 16), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return Answer(int(head.split()[1]), {}, body)


@pytest.mark.parametrize("abruptly", [True, False])
@pytest.mark.parametrize("sent", [0.5, 0.99, 1.0])
def test_clients_that_leave_early_disturb_nobody(start: Start, sent: float, abruptly: bool, int8: Embedder) -> None:
    local = start()
    for _ in range(5):
        connection, request = raw_request(local, many(20))
        with connection:
            connection.sendall(request[: int(sent * len(request))])
            if abruptly:  # a reset instead of an end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    check_vector(local.send("/embed", REQUEST), int8)
    assert not any("Traceback" in line for line in local.log), local.log


def test_slow_clients_are_answered_and_keep_nobody_waiting(start: Start, int8: Embedder) -> None:
    local = start()
    connections = [raw_request(local) for _ in range(10)]
    for place in range(len(connections[0][1])):
        for connection, request in connections:
            connection.sendall(request[place : place + 1])
        if place % 40 == 0:
            check_vector(local.send("/embed", REQUEST), int8)
    for connection, _ in connections:
        with connection:
            check_vector(receive(connection), int8)


def test_a_hundred_clients_get_each_their_own_answer_once(start: Start, int8: Embedder) -> None:
    local = start()
    texts = [f"client number {number} asks for this" for number in range(100)]
    gate = threading.Barrier(len(texts))

    def client(text: str) -> Answer:
        gate.wait()
        return local.send("/embed", json.dumps({"text": text}).encode())

    with ThreadPoolExecutor(len(texts)) as pool:
        answers = list(pool.map(client, texts))
    for text, answer in zip(texts, answers, strict=True):
        check_vector(answer, int8, text)
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(texts)
    assert sorted(line["request_id"] for line in lines_of(local, len(texts))) == sorted(ids)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_fork_after_a_request_answers_as_its_parent_does(threads: str, model_cache: Path) -> None:
    """Threads of the parent, the tokenizer's for one, are not in the fork."""
    code = """
import os, signal
from handler.app import lambda_handler
ask = lambda: lambda_handler({"texts": ["before", "after " * 200, "a", "b"]}, None)["embeddings"]
wanted = ask()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if ask() == wanted else 2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ask() == wanted)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"MODEL_CACHE_DIR": str(model_cache), "MODEL_THREADS": threads}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "0 True"
