"""A headless Chromium, spoken to over its debugging pipe: what a page looks like, and what it complains of.

The protocol is Chrome DevTools': JSON messages ended by a NUL, from file descriptor 4 and to file descriptor 3.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# root may not use the sandbox, and the pages are ours; the rest keeps the browser off the network
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-sync")
FLAGS += ("--hide-scrollbars", "--remote-debugging-pipe")
ANSWER_SECONDS = 60.0

# What a reader of the page would call broken, in words. Elements of `.scroll` may be wider than the page: they scroll.
FAULTS = """
(() => {
  const faults = [], wide = document.documentElement.clientWidth;
  const named = (node) => `${node.tagName.toLowerCase()}.${node.getAttribute('class') || ''}`;
  const whole = document.documentElement.scrollWidth;
  if (whole > wide) faults.push(`the page is ${whole} wide`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const text = node.textContent.trim(), parent = node.parentElement;
    if (!text || parent.closest('style, script, title, svg title')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width || parent.closest('.scroll')) continue;
    if (box.left < -0.5 || box.right > wide + 0.5) faults.push(`beyond the page: ${text}`);
    for (let outer = parent; outer && outer !== document.body; outer = outer.parentElement) {
      const style = getComputedStyle(outer), frame = outer.getBoundingClientRect();
      const cuts = outer.tagName === 'svg' || style.overflowX !== 'visible' || style.overflowY !== 'visible';
      const past = box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 3 || box.bottom > frame.bottom + 3;
      if (cuts && past) faults.push(`cut by ${named(outer)}: ${text}`);
    }
  }
  for (const cell of document.querySelectorAll('th, td, dd, .tile b, .tile span, figcaption, summary')) {
    if (cell.scrollWidth > cell.clientWidth + 1 && cell.clientWidth && !cell.closest('.scroll')) {
      faults.push(`wider than its box: ${named(cell)} ${cell.textContent.trim()}`);
    }
  }
  for (const picture of document.images) if (!picture.naturalWidth) faults.push(`no picture: ${picture.alt}`);
  for (const plot of document.querySelectorAll('svg')) {
    const boxes = [...plot.querySelectorAll('text')].filter((text) => text.getClientRects().length)
      .map((text) => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([one, a], index) => boxes.slice(index + 1).forEach(([other, b]) => {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1.5 && y > 3.5) faults.push(`one over the other: ${one}, ${other}`);
    }));
  }
  return faults;
})()
"""


def find() -> str:
    """Path of a Chromium. Skips the test, with the reason, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium or Chrome here; install the package chromium")
    return found


class Browser:
    """One page in a browser of its own; `complaints` are console errors, exceptions, and whatever it fetched."""

    def __init__(self) -> None:
        program = find()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the browser
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        # the shell moves the pipe's ends to where the browser looks for them
        move = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        command = ["bash", "-c", move, "bash", program, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_child, from_child),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._last, self._session = b"", 0, ""
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        try:
            self._require_started()
            target = self._ask("Target.createTarget", url="about:blank")["targetId"]
            attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._ask(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file at a width in CSS pixels; complaints are of this page from here on."""
        self.complaints.clear()
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        answer = self._ask("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in answer, f"{path}: {answer['errorText']}"
        self._wait_for("Page.loadEventFired")
        # one frame drawn: fonts and pictures are where they stay
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def value(self, expression: str) -> Any:
        """What JavaScript gives, awaited where it is a promise."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def faults(self) -> list[str]:
        """What is wrong to look at, see `FAULTS`, and the page's complaints."""
        found: list[str] = self.value(FAULTS)
        return [*self.complaints, *found]

    def screenshot(self, path: Path) -> None:
        """PNG of the whole page."""
        shot = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._profile.cleanup()
        self._log.close()

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while (answer := self._receive(deadline)).get("id") != message["id"]:
            self._heard(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _require_started(self) -> None:
        """Skips the test, with the browser's last words, where it ends instead of saying its version."""
        try:
            self._ask("Browser.getVersion")
        except (BrokenPipeError, AssertionError):
            try:
                self._process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                pass  # it runs and does not answer: that is no matter of this machine
            else:
                pytest.skip(f"{self._process.args[4]} cannot start here: {self._last_words()}")
            raise

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")

    def _wait_for(self, event: str) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while not any(one.get("method") == event for one in self._events):
            self._heard(self._receive(deadline))

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0.0))
            assert ready, "the browser does not answer"
            chunk = os.read(self._read, 1 << 20)
            assert chunk, "the browser is gone"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        received: dict[str, Any] = json.loads(message)
        return received

    def _heard(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        method, said = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {said['exceptionDetails'].get('text')}")
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"console: {[one.get('value') for one in said['args']]}")
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"log: {said['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = said["request"]["url"]
            if not url.startswith(("data:", "file:", "about:")):
                self.complaints.append(f"fetched: {url}")
