"""openai's package for JavaScript in a page: headless Chromium, and `python -m local` at another origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from handler.embedder import Embedder
from tests.support.browser import Browser, Page, browser, tab
from tests.support.servers import CLIENTS, ROOT, Handler, Local, serving
from tests.support.vectors import cosines

pytestmark = pytest.mark.slow

__all__ = ["browser"]  # a fixture

MODEL = "all-MiniLM-L6-v2"
MIN_COSINE = 0.99
TEXTS = ["vitamin d", "Das Größte ist die Gelassenheit.\nZweite Zeile.", "a fox 🦊"]
Reference = Callable[[Sequence[str]], np.ndarray]
PACKAGE = CLIENTS / "node_modules" / "openai"


class Files(Handler):
    """The page, and the package that it imports, as it is published."""

    def do_GET(self) -> None:  # noqa: N802  the name that http.server looks for
        if self.path.startswith("/openai/"):
            return self.answer(
                200, {"content-type": "text/javascript"}, (PACKAGE / self.path.removeprefix("/openai/")).read_bytes()
            )
        page = (ROOT / "tests" / "clients" / "use_openai.html").read_bytes()
        return self.answer(200, {"content-type": "text/html"}, page)


class ClientPage(Page):
    """A tab with openai's client in it."""

    def embed(self, url: str, model: str = MODEL) -> dict[str, Any]:
        """What the client gives its page."""
        found: dict[str, Any] = self.evaluate(f"embed({json.dumps(url)}, {json.dumps(model)}, {json.dumps(TEXTS)})")
        return found


@pytest.fixture
def page(browser: Browser) -> Iterator[ClientPage]:
    if not PACKAGE.exists():
        pytest.skip("the openai package is missing: install Node.js 20 and npm, then make -B clients")
    with serving(Files) as origin, tab(browser, ClientPage) as page:
        page.open(origin + "/")
        page.wait_for("window.embed !== undefined")
        yield page


def methods(page: Page, local: Local) -> list[str]:
    """Of the requests to the service, preflights among them."""
    events = [event["params"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    return [event["request"]["method"] for event in events if event["request"]["url"].startswith(local.url)]


@pytest.mark.parametrize("setting", ["*", "{origin}"])
def test_vectors(
    start: Callable[..., Local], page: ClientPage, setting: str, int8: Embedder, reference: Reference
) -> None:
    local = start(CORS_ORIGIN=setting.format(origin=page.evaluate("location.origin")))
    found = page.embed(local.url)
    assert "error" not in found, (found, page.errors())
    np.testing.assert_array_equal(np.float32(found["vectors"]), int8.embed(TEXTS).vectors)
    assert cosines(np.array(found["vectors"]), reference(TEXTS)).min() >= MIN_COSINE
    assert sorted(methods(page, local)) == ["OPTIONS", "POST"]


def test_a_page_of_another_origin_than_the_allowed_gets_nothing(start: Callable[..., Local], page: ClientPage) -> None:
    local = start(CORS_ORIGIN="https://app.example.com")
    error = page.embed(local.url)["error"]
    assert (error["class"], error.get("status")) == ("APIConnectionError", None)


@pytest.mark.parametrize(
    ("base", "model", "code"), [("", "text-embedding-3-small", "model_not_found"), ("/nowhere", MODEL, "unknown_route")]
)
def test_errors_can_be_read_and_are_not_asked_for_again(
    start: Callable[..., Local], page: ClientPage, base: str, model: str, code: str
) -> None:
    local = start(CORS_ORIGIN="*")
    error = page.embed(local.url + base, model)["error"]
    assert (error["class"], error["status"], error["code"]) == ("NotFoundError", 404, code)
    assert error["request_id"]
    assert sorted(methods(page, local)) == ["OPTIONS", "POST"]
