"""GET /docs in a real browser: headless Chromium in front of `python -m local`."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.browser import Browser, Page, browser, tab

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.support.servers import Local

__all__ = ["browser"]  # a fixture

SENTENCES = "#sentences"
EMBED_BODY = "#post-embed-body"
HOSTILE = """<script>document.title = "run"</script><img src=x onerror="document.title = 'run'">"""


class DocsPage(Page):
    """A tab with the page of the API."""

    def open(self, url: str) -> None:
        """Load the page and wait until it has shown, or said that it cannot show, info and routes."""
        super().open(url)
        self.wait_for("!document.body.innerText.includes('Loading ')")

    def try_embed(self, body: str) -> str:
        """Send a request body with the form of POST /embed; what its status line then says."""
        form = f"document.querySelector('{EMBED_BODY}').form"
        self.type(EMBED_BODY, body)
        self.press_enter(f"form:has({EMBED_BODY}) button")
        status = f"{form}.querySelector('[role=status]').innerText"
        return self.wait_for(f"/^\\d|No answer/.test({status}) && {status}")

    def compare(self, sentences: list[str]) -> str:
        """Compare sentences; what the status line then says."""
        self.type(SENTENCES, "\n".join(sentences))
        self.press_enter("#compare-form button")
        status = "document.querySelector('#compare-status').innerText"
        return self.wait_for(f"!/^$|^Sending/.test({status}) && {status}")


@pytest.fixture
def page(browser: Browser) -> Iterator[DocsPage]:
    with tab(browser, DocsPage) as page:
        yield page


@pytest.fixture
def local(start: Callable[..., Local]) -> Local:
    return start()


@contextmanager
def prefixed(local: Local, prefix: str) -> Iterator[str]:
    """The same service under a path prefix, as a stage of an API Gateway puts it; nothing lies beside the prefix."""

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))) or None
            if not self.path.startswith(prefix + "/"):
                return self.send_error(403)
            answer = local.send(self.path.removeprefix(prefix), body, content_type="application/json")
            self.send_response(answer.status)
            for name in ("content-type", "content-security-policy", "x-request-id"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.body)
            return None

        do_POST = do_GET  # noqa: N815  the name that http.server looks for

        def log_message(self, *_: object) -> None:
            """Nothing to standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{prefix}"
        finally:
            server.shutdown()


def vectors_of(local: Local, texts: list[str]) -> np.ndarray:
    """The vectors as base64 from the API, shape (n, 384); the page too asks for base64."""
    answer = local.send("/embed", json.dumps({"texts": texts, "encoding_format": "base64"}).encode())
    assert answer.status == 200, answer.body
    return np.array([np.frombuffer(base64.b64decode(text), "<f4") for text in answer.json()["embeddings"]])


def shown_matrix(page: DocsPage) -> dict[str, np.ndarray]:
    """Of the table of similarities: numbers as read, numbers in the cells' titles, opacity of the cells' colour."""
    cells = page.evaluate(
        """[...document.querySelectorAll(".matrix tbody tr")].map((row) => [...row.querySelectorAll("td")].map((cell) =>
        ({text: cell.innerText, title: cell.title, colour: getComputedStyle(cell).backgroundColor})))"""
    )
    return {
        "text": np.array([[float(cell["text"]) for cell in row] for row in cells]),
        "title": np.array([[float(cell["title"].rpartition(" ")[2]) for cell in row] for row in cells]),
        "opacity": np.array([[opacity(cell["colour"]) for cell in row] for row in cells]),
    }


def opacity(colour: str) -> float:
    """The last number of `rgba(36, 112, 210, 0.48)`; `rgb(...)` is opaque."""
    return float(colour.rstrip(")").rpartition(",")[2]) if colour.startswith("rgba") else 1.0


def test_the_page_loads_clean_and_asks_nobody_else(page: DocsPage, local: Local) -> None:
    answer = local.send("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    # The policy under which all tests here run: a breach of it would be an error of the console.
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page.open(local.url + "/docs")
    page.compare(["vitamin d", "sunlight"])
    page.try_embed('{"text": "vitamin d"}')
    assert page.errors() == []
    asked = [url for url in page.requests() if not url.startswith("data:")]
    assert {"/docs", "/info", "/openapi.json", "/embed"} <= {url.removeprefix(local.url) for url in asked}
    assert [url for url in asked if not url.startswith(local.url + "/")] == []


def test_all_routes_are_listed_with_fields_and_answers(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    paths = local.send("/openapi.json").json()["paths"]
    routes = {
        f"{method.upper()} {path}" for path, item in paths.items() for method in item if method in ("get", "post")
    }
    shown = page.evaluate("""[...document.querySelectorAll(".route")].map((route) => ({
        name: route.querySelector("h3").textContent,
        answers: [...route.querySelectorAll("tbody th")].map((cell) => cell.textContent)}))""")
    assert {route["name"] for route in shown} == routes
    for route in shown:
        method, path = route["name"].split(" ")
        assert set(paths[path][method.lower()]["responses"]) <= set(route["answers"]), route["name"]
    embed = next(route for route in shown if route["name"] == "POST /embed")
    assert {"text", "texts", "encoding_format"} <= set(embed["answers"])


def test_the_model_and_its_limits_are_shown(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    info = local.send("/info").json()
    shown = page.text("#info")
    assert info["model"] in shown
    assert info["artifact_version"] in shown
    for limit in info["limits"].values():
        assert f"{limit:,}" in shown


def test_every_example_is_answered_with_200(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    page.evaluate("document.querySelectorAll('.route form').forEach((form) => form.requestSubmit())")
    statuses = "[...document.querySelectorAll('.route form [role=status]')].map((status) => status.innerText)"
    page.wait_for(f"{statuses}.every((status) => /^\\d|No answer/.test(status))")
    assert [status for status in page.evaluate(statuses) if not status.startswith("200")] == []


def test_trying_embed_shows_the_vector_of_the_api(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    status = page.try_embed('{"text": "größe 🙂"}')
    assert status.startswith("200")
    assert " ms" in status
    assert "x-request-id: " in status
    vector = local.send("/embed", '{"text": "größe 🙂"}'.encode()).json()["embedding"]
    shown = page.text(f"form:has({EMBED_BODY}) .answer")
    assert f"[{', '.join(map(str, vector[:4]))}, … 380 more numbers]" in shown
    assert str(vector[4]) not in shown


@pytest.mark.parametrize("body", ["{}", "no JSON", '{"text": 1}', '{"texts": ["a", null]}', '{"<img src=x>\'": 1}'])
def test_a_bad_body_shows_the_message_of_the_api(page: DocsPage, local: Local, body: str) -> None:
    page.open(local.url + "/docs")
    error = local.send("/embed", body.encode()).json()["error"]
    assert page.try_embed(body).startswith(f"400: {error['message']}")


def test_a_server_that_is_gone_is_said_in_plain_words(page: DocsPage, start: Callable[..., Local]) -> None:
    local = start()
    page.open(local.url + "/docs")
    local.process.terminate()
    local.process.wait(timeout=20)
    gone = f"No answer from {local.url}/embed: the server cannot be reached, or the connection broke off."
    assert page.try_embed("{}").startswith(gone)
    assert page.compare(["a", "b"]).startswith(gone)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_matrix_is_the_cosine_similarity_of_the_vectors_of_the_api(
    page: DocsPage, local: Local, scheme: str
) -> None:
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(local.url + "/docs")
    sentences = page.evaluate("document.querySelector('#sentences').value").splitlines()
    page.press_enter("#compare-form button")
    page.wait_for("document.querySelector('.matrix') !== null")
    vectors = vectors_of(local, sentences).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = unit @ unit.T
    shown = shown_matrix(page)
    np.testing.assert_allclose(shown["title"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(shown["text"], expected, rtol=0, atol=0.0051)
    # The example sentences are pairs on one topic each.
    size = len(sentences)
    related = np.equal.outer(np.arange(size) // 2, np.arange(size) // 2)
    assert shown["opacity"][related].min() > shown["opacity"][~related].max() + 0.2
    assert page.evaluate("[...document.querySelectorAll('.matrix thead th')].map((cell) => cell.title)") == sentences
    assert page.evaluate("document.querySelectorAll('.matrix tbody th[scope=row]').length") == size


def test_cut_sentences_are_named(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    page.compare(["short", "long " * 300, "", "short too", "word " * 254])
    assert page.text(".truncated").startswith("Cut at 256 tokens")
    assert page.text(".truncated").endswith(": 2.")
    page.compare(["short", "short too"])
    assert page.text(".truncated") == ""


@pytest.mark.parametrize(("lines", "says"), [(["", "one", " "], "at least two sentences"), (["x"] * 51, "50 at most")])
def test_what_cannot_be_compared_is_not_sent(page: DocsPage, local: Local, lines: list[str], says: str) -> None:
    page.open(local.url + "/docs")
    assert says in page.compare(lines)
    assert local.url + "/embed" not in page.requests()


def test_a_missing_model_is_shown_as_the_api_says_it(
    page: DocsPage, start: Callable[..., Local], tmp_path: Path
) -> None:
    local = start(MODEL_CACHE_DIR=str(tmp_path))
    error = local.send("/embed", b'{"text": "vitamin d"}').json()["error"]
    assert str(tmp_path) in error["message"]
    page.open(local.url + "/docs")
    said = f"503: {error['message']}"
    assert page.compare(["vitamin d", "sunlight"]).startswith(said)
    assert page.try_embed('{"text": "vitamin d"}').startswith(said)
    assert local.send("/info").json()["error"]["message"] in page.text("#info")
    assert "POST /embed" in page.text("#operations")


def test_markup_in_texts_and_answers_is_shown_as_text(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    title = page.evaluate("document.title")
    page.compare([HOSTILE, "vitamin d"])
    assert HOSTILE in page.text(".matrix tbody th")
    status = page.try_embed(json.dumps({"text": "a", "encoding_format": HOSTILE[:30]}))
    assert "<script>" in status
    assert "<script>" in page.text(f"form:has({EMBED_BODY}) .answer")
    assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0
    assert page.evaluate("document.title") == title
    assert not [url for url in page.requests() if url.endswith("/x")]


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(page: DocsPage, local: Local, width: int) -> None:
    page.command("Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=False)
    page.open(local.url + "/docs")
    page.compare(["word" * 100, "vitamin d", "sunlight", "c", "d", "e"])
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_fields_have_labels_and_tables_have_headers(page: DocsPage, local: Local) -> None:
    page.open(local.url + "/docs")
    page.compare(["vitamin d", "sunlight"])
    assert (
        page.evaluate("[...document.querySelectorAll('textarea, input, select')].filter((f) => !f.labels.length)") == []
    )
    assert page.evaluate("[...document.querySelectorAll('table')].filter((table) => !table.caption)") == []
    assert page.evaluate("[...document.querySelectorAll('th')].filter((cell) => !cell.scope).length") == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", ["/docs", "/"])
def test_the_page_works_behind_a_path_prefix(page: DocsPage, local: Local, path: str) -> None:
    with prefixed(local, "/prod") as url:
        page.open(url + path)
        assert page.try_embed('{"text": "vitamin d"}').startswith("200")
        assert page.errors() == []
        assert {f"{url}/info", f"{url}/openapi.json", f"{url}/embed"} <= set(page.requests())
