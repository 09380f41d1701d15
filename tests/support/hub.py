"""A hub on loopback: the two requests that huggingface_hub's snapshot_download makes, over a folder of files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def serve_hub(folder: Path, model: str, commit: str) -> Iterator[str]:
    """Serve `folder` as `model` at `commit` and as its newest revision; yields the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, with_body: bool) -> None:
            listing = {f"/api/models/{model}/revision/{name}" for name in (commit, "main")}
            files = f"/{model}/resolve/{commit}/"
            if self.path in listing:
                names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
                siblings = [{"rfilename": name} for name in names]
                body = json.dumps({"id": model, "sha": commit, "siblings": siblings}).encode()
            elif self.path.startswith(files) and (folder / self.path.removeprefix(files)).is_file():
                body = (folder / self.path.removeprefix(files)).read_bytes()
            else:
                self.send_response(404)
                self.send_header("x-error-code", "RepoNotFound")
                self.send_header("content-length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.send_header("etag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("x-repo-commit", commit)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
