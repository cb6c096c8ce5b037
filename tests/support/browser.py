"""Chromium with the network off, in which tests open pages, click and press keys."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page in")


class Browser:
    """Chromium with the network off, driven over its DevTools protocol; it keeps every complaint."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}

    async def send(self, method: str, session: str | None, **params: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        await self.socket.send_json(message | ({"sessionId": session} if session else {}))
        while number not in self._answers:
            await self._receive()
        return self._answers.pop(number)

    async def settle(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await self._receive()

    async def _receive(self) -> None:
        message = json.loads((await self.socket.receive(timeout=20)).data)
        if "id" in message:
            assert "error" not in message, message
            self._answers[message["id"]] = message["result"]
            return
        method, params = message["method"], message["params"]
        if method == "Target.attachedToTarget":
            # A frame in a process of its own: listen to it as well.
            for number, domain in enumerate(("Runtime", "Log", "Network")):
                enable = {"id": 10_000 + number, "method": f"{domain}.enable", "sessionId": params["sessionId"]}
                await self.socket.send_json(enable)
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


class Page:
    """A page that is open in a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser = browser
        self.session = session

    async def evaluate(self, script: str) -> Any:
        answer = await self.browser.send("Runtime.evaluate", self.session, expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            point = {"x": x, "y": y, "button": "left", "clickCount": 1}
            await self.browser.send("Input.dispatchMouseEvent", self.session, type=kind, **point)
        await self.browser.settle(0.2)

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.browser.send("Input.dispatchKeyEvent", self.session, type=kind, key=key, code=key)
        await self.browser.settle(0.2)

    async def shot(self, x: float, y: float, width: float, height: float) -> bytes:
        await self.browser.settle(0.2)
        picture = await self.browser.send("Page.captureScreenshot", self.session, format="png")
        with Image.open(io.BytesIO(base64.b64decode(picture["data"]))) as image:
            return image.convert("RGB").crop((int(x), int(y), int(x + width), int(y + height))).tobytes()


@contextlib.asynccontextmanager
async def opened(file: Path, profile: Path) -> AsyncIterator[Page]:
    """Open a file as a reader would, and wait until it is there."""
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --remote-debugging-port=0 --window-size=1280,900"
    )
    process = await asyncio.create_subprocess_exec(
        str(CHROMIUM), *flags.split(), f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(200):
            if port_file.exists() and len(port_file.read_text().splitlines()) == 2:
                break
            await asyncio.sleep(0.1)
        port, path = port_file.read_text().splitlines()
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            browser = Browser(socket)
            target = await browser.send("Target.createTarget", None, url="about:blank")
            attached = await browser.send("Target.attachToTarget", None, targetId=target["targetId"], flatten=True)
            session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                await browser.send(f"{domain}.enable", session)
            offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            await browser.send("Network.emulateNetworkConditions", session, **offline)
            await browser.send("Page.navigate", session, url=file.as_uri())
            page = Page(browser, session)
            for _ in range(60):
                await browser.settle(0.5)
                if await page.evaluate("location.protocol === 'file:' && document.readyState === 'complete'"):
                    break
            await browser.settle(1)
            yield page
    finally:
        process.terminate()
        await process.wait()
