"""A headless Chromium, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Browser:
    """A running Chromium; `port` is its DevTools port."""

    port: int


@dataclass
class Page:
    """A tab: commands out, answers in; events that come in between are kept."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    socket: aiohttp.ClientWebSocketResponse
    sent: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.loop.run_until_complete(asyncio.wait_for(self._command(method, parameters), 60))

    async def _command(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self.sent += 1
        await self.socket.send_json({"id": self.sent, "method": method, "params": parameters})
        while True:
            message = json.loads(await self.socket.receive_str())
            if "id" not in message:
                self.events.append(message)
                continue
            assert message["id"] == self.sent
            assert "error" not in message, f"{method}: {message['error']}"
            return message["result"]

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        answer = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """The expression's value as soon as it is truthy."""
        deadline = time.monotonic() + 30
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"not so: {expression}; the page: {self.text('body')[:2000]}"
            time.sleep(0.02)
        return value

    def open(self, url: str) -> None:
        """Load the page and all that it loads itself."""
        self.events.clear()
        self.command("Page.navigate", url=url)
        self.wait_for(f"location.href == {json.dumps(url)} && document.readyState == 'complete'")

    def text(self, selector: str) -> str:
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def type(self, selector: str, text: str) -> None:
        """Replace a field's content as a person does: select all and insert."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.command("Input.insertText", text=text)

    def press_enter(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.command("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
        self.command("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")

    def requests(self) -> list[str]:
        events = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in events]

    def errors(self) -> list[Any]:
        """What the console shows in red or yellow: exceptions, faults of the network, breaches of the CSP."""
        bad = []
        for event in self.events:
            parameters = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                bad.append(parameters["exceptionDetails"])
            if event["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                bad.append(parameters["args"])
            if event["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                bad.append(parameters["entry"])
        return bad


PageT = TypeVar("PageT", bound=Page)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH: apt-get install chromium")
    # Not pytest's tmp_path, which keeps profiles of 10 MB over three runs.
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        arguments = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        # Containers have 64 MB of /dev/shm; and the browser itself should ask nobody for anything.
        quiet = ["--disable-dev-shm-usage", "--disable-gpu", "--no-first-run", "--no-proxy-server"]
        quiet += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        with Path(profile, "log").open("w+") as log:
            process = subprocess.Popen([program, *arguments, *quiet, "about:blank"], stdout=log, stderr=log)
            try:
                yield Browser(devtools_port(process, Path(profile)))
            finally:
                process.terminate()
                process.wait(timeout=20)


def devtools_port(process: subprocess.Popen[bytes], profile: Path) -> int:
    file = profile / "DevToolsActivePort"
    deadline = time.monotonic() + 60
    # Two lines, the port and a path; Chromium creates the file and then writes it.
    while not file.exists() or file.read_text().count("\n") < 1:
        log = (profile / "log").read_text()
        assert process.poll() is None, f"the browser ended with {process.returncode}: {log}"
        assert time.monotonic() < deadline, f"the browser opened no DevTools port: {log}"
        time.sleep(0.05)
    return int(file.read_text().split()[0])


@contextmanager
def tab(browser: Browser, kind: type[PageT]) -> Iterator[PageT]:
    """A tab of its own, whose requests and console messages are recorded."""
    loop = asyncio.new_event_loop()
    session, socket, target = loop.run_until_complete(attach(browser))
    page = kind(loop, session, socket)
    for domain in ("Page", "Runtime", "Network", "Log"):
        page.command(f"{domain}.enable")
    yield page
    page.command("Target.closeTarget", targetId=target)
    loop.run_until_complete(socket.close())
    loop.run_until_complete(session.close())
    loop.close()


async def attach(browser: Browser) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse, str]:
    session = aiohttp.ClientSession(f"http://127.0.0.1:{browser.port}")
    async with session.put("/json/new?about:blank") as response:
        target = await response.json()
    socket = await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
    return session, socket, target["id"]
