"""Drive a headless Chromium over the DevTools protocol, and measure what it shows.

The messages are JSON, each followed by NUL, on two pipes: the browser reads from its file
descriptor 3 and writes to its file descriptor 4 (option ``--remote-debugging-pipe``).
"""

import base64
import json
import os
import select
import shutil
import time

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
TIMEOUT = 60  # seconds for an answer of the browser, or for a condition on a page
KEYS = {  # name: (key, code, text, number, modifiers, commands of the editor)
    "Tab": ("Tab", "Tab", "", 9, 0, []),
    "Shift+Tab": ("Tab", "Tab", "", 9, 8, []),
    "Enter": ("Enter", "Enter", "\r", 13, 0, []),
    "Space": (" ", "Space", " ", 32, 0, []),
    "Control+V": ("v", "KeyV", "", 86, 2, ["paste"]),
}

# Bodies of functions that return what is wider than the screen, and the sizes of all texts in
# pixels. ``document`` and ``window`` are those of the page.
WIDER = """
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e.parentElement && (
    ["auto", "scroll"].includes(window.getComputedStyle(e.parentElement).overflowX)
    || scrolls(e.parentElement));
  const out = [...document.body.querySelectorAll("*")].filter(
    (e) => e.getBoundingClientRect().right > width + 0.5 && !scrolls(e));
  return {width, scroll: document.documentElement.scrollWidth, inner: window.innerWidth,
          wider: out.map((e) => e.outerHTML.slice(0, 80))};
"""
FONTS = """
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const sizes = [];
  while (texts.nextNode())
    if (texts.currentNode.data.trim())
      sizes.push(parseFloat(window.getComputedStyle(texts.currentNode.parentElement).fontSize));
  return sizes;
"""


def find_browser():
    """Return the path of a browser; without one, skip the test, or fail where CI demands one."""
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        assert "SNZOO_NEEDS_BROWSER" not in os.environ, "no browser"  # CI has one
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return command


class Browser:
    """A headless browser, with its profile in a folder."""

    def __init__(self, command, folder):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        moves = [(to_browser, 3), (from_browser, 4), (log, 2)]
        assert min(to_browser, from_browser) > 4, "the moves would overwrite each other"
        profile = f"--user-data-dir={folder / 'profile'}"
        self._process = os.posix_spawn(
            command,
            [command, *OPTIONS, "--remote-debugging-pipe", profile],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, old, new) for old, new in moves],
        )
        for end in (to_browser, from_browser, log):
            os.close(end)
        self._unread, self._calls = b"", 0
        self.events = []  # (session, method, parameters)

    def call(self, method, *, session=None, **parameters):
        """Call a method of the protocol; return its result."""
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append((answer.get("sessionId"), answer["method"], answer["params"]))

    def _read(self):
        while b"\0" not in self._unread:
            assert select.select([self._in], [], [], TIMEOUT)[0], "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has ended"
            self._unread += part
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)

    def open(self, url, *, width=1200, height=900, dark=False):
        """Open an address in a new profile; return the page once it is loaded."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"], context)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM", "Accessibility"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.use_dark_mode(dark)
        page.call("Page.navigate", url=url)
        page.wait("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page

    def close(self):
        self.call("Browser.close")
        os.waitpid(self._process, 0)
        os.close(self._out)
        os.close(self._in)


class Page:
    """A page in the browser."""

    def __init__(self, browser, session, context):
        self._browser, self._session, self._context = browser, session, context

    def call(self, method, **parameters):
        return self._browser.call(method, session=self._session, **parameters)

    def close(self):
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def events(self, method):
        """Return the parameters of all events of this page that have a name."""
        self.evaluate("0")  # takes the events that have come
        return [
            event
            for of, name, event in self._browser.events
            if (of, name) == (self._session, method)
        ]

    def requests(self):
        """Return the addresses that this page asked for."""
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]

    def complaints(self):
        """Return what the console says: errors, warnings and messages."""
        log = [event["entry"] for event in self.events("Log.entryAdded")]
        return [
            *(entry["text"] for entry in log if entry["level"] != "verbose"),
            *map(str, self.events("Runtime.consoleAPICalled")),
            *map(str, self.events("Runtime.exceptionThrown")),
        ]

    def evaluate(self, script):
        """Return the value of an expression in the page; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def run(self, body):
        """Return what the body of a function returns in the page."""
        return self.evaluate(f"(() => {{ {body} }})()")

    def wait(self, script):
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            if self.evaluate(f"Boolean({script})"):
                return
            time.sleep(0.02)
        raise AssertionError(f"not within {TIMEOUT} s: {script}\n{self.text()}")

    def text(self):
        return self.evaluate("document.body.innerText")

    def resize(self, width, height=900, *, mobile=False):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def use_dark_mode(self, dark=True):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    def choose_files(self, selector, *paths):
        """Choose files in a file input, as its dialog does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drag_files(self, *paths, kinds=("dragEnter", "dragOver", "drop"), at=(300, 300)):
        """Drag files from outside over a point of the page, and drop them."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in kinds:
            self.call("Input.dispatchDragEvent", type=kind, x=at[0], y=at[1], data=data)

    def press(self, key):
        """Press a key of ``KEYS`` and let it go."""
        name, code, text, number, modifiers, commands = KEYS[key]
        event = {"key": name, "code": code, "windowsVirtualKeyCode": number}
        event |= {"modifiers": modifiers}
        down = {"text": text, "type": "keyDown" if text else "rawKeyDown", "commands": commands}
        self.call("Input.dispatchKeyEvent", **event, **down)
        self.call("Input.dispatchKeyEvent", **event, type="keyUp")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def allow_clipboard(self, origin):
        """Let the page write to the clipboard, as if its window had the focus."""
        self._browser.call(
            "Browser.grantPermissions",
            origin=origin,
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
            browserContextId=self._context,
        )
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def screenshot(self, path):
        """Write a picture (PNG) of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


def luminance(color):
    """Return the relative luminance (WCAG) of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(color, background):
    """Return the contrast (WCAG) of two colors ``rgb(r, g, b)``."""
    low, high = sorted(map(luminance, (color, background)))
    return (high + 0.05) / (low + 0.05)
