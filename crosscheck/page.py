"""Judges the chat page in a headless Chromium: `python page.py ANEMONE BUNDLE GOLDEN [--screenshots FOLDER] [--chromium PROGRAM]`

Types a question and sees the golden answer stream in; stops one, asks again, sets a system prompt and the sampling, keeps several
conversations over a reload, all by keyboard; light and dark, wide and narrow; no request to anywhere else; and text of a model is
never markup. With `--screenshots` it leaves pictures to look at. Exit 0 when all is right, 1 otherwise.
"""

import argparse
import base64
import contextlib
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

from websockets.sync.client import connect

from serving import WRONG, same, serving

# Seconds until what does not come counts as missing. No judgement depends on how fast a machine is.
PATIENCE = 120
KEYS = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "KeyN": 78, "KeyR": 82, "Comma": 188}


class Page:
    """A tab, spoken to by the DevTools protocol."""

    def __init__(self, port, stack):
        # The browser listens before it has a tab.
        end = time.monotonic() + PATIENCE
        while not (address := self.tab(port)):
            if time.monotonic() > end:
                raise SystemExit("WRONG: the browser opened no tab")
            time.sleep(0.05)
        self.socket = stack.enter_context(connect(address, max_size=None))
        self.numbers = itertools.count(1)
        self.requests, self.errors = [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    @staticmethod
    def tab(port):
        """The address of a tab, if there is one yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as reply:
                tabs = json.load(reply)
        except OSError:
            return None
        return next((t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"), None)

    def call(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message.get("id") == number:
                # None while a document goes and the next one comes: there is nothing to ask.
                return message.get("result")
            self.note(message)

    def note(self, message):
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def eval(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return result and result["result"].get("value")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def key(self, code, alt=False, shift=False):
        more = {"text": "\r"} if code == "Enter" else {}
        key = {"KeyN": "n", "KeyR": "r", "Comma": ","}.get(code, code)
        for kind in ("keyDown", "keyUp"):
            modifiers = alt + 8 * shift
            self.call(
                "Input.dispatchKeyEvent", type=kind, code=code, key=key, windowsVirtualKeyCode=KEYS[code], modifiers=modifiers, **more
            )

    def wait(self, expression, what):
        end = time.monotonic() + PATIENCE
        while not self.eval(f"!!({expression})"):
            if time.monotonic() > end:
                same(self.eval("document.body.innerText"), None, f"no {what}")
                return
            time.sleep(0.02)

    def open(self, url):
        # What is answered before the new document is there is answered by the old one.
        self.eval("window.before = true")
        self.call("Page.navigate", url=url)
        self.wait("!window.before && document.readyState === 'complete' && document.activeElement?.id === 'text'", "page with the focus in its text")

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(program):
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1200,800", "about:blank"]
        process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = pathlib.Path(profile, "DevToolsActivePort")
            end = time.monotonic() + PATIENCE
            while not port.exists() or not port.read_text(encoding="ascii").strip():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"WRONG: {program} did not start")
                time.sleep(0.05)
            with contextlib.ExitStack() as stack:
                yield Page(port.read_text(encoding="ascii").split()[0], stack)
        finally:
            process.kill()
            process.wait()


# How often an answer that ends before there is a text to stop is asked for.
TRIES = 10
# A connection on which each event of a stream takes a while, so that an answer of a few tokens lasts for seconds.
SLOW = """
window.fetch = ((quick) => async (address, options) => {
  const reply = await quick(address, options);
  const slow = new TransformStream({ async transform(bytes, out) {
    for (const event of new TextDecoder().decode(bytes).split(/(?<=\\n\\n)/)) {
      out.enqueue(new TextEncoder().encode(event));
      await new Promise((done) => setTimeout(done, 300));
    }
  } });
  return new Response(reply.body.pipeThrough(slow, { signal: options?.signal }), reply);
})(window.fetch)
"""
LAST = "[...document.querySelectorAll('.assistant .said')].at(-1)"
IDLE = "document.getElementById('stop').hidden && document.querySelector('.assistant .note')"


def converse(page, server, records, look):
    """The page's habits, one after another."""
    code = next(r for r in records if r["expected_text"].startswith("```") and r["expected_text"].endswith("```"))
    question, answer = code["messages"][-1]["content"], code["expected_text"]
    page.open(server.url)
    look("empty")

    # Greedy, by the settings, from the keyboard.
    page.key("Comma", alt=True)
    page.wait("document.getElementById('dialog').open", "settings")
    page.eval("document.getElementById('temperature').value = 0")
    look("settings")
    page.eval("document.querySelector('#dialog form').requestSubmit()")
    page.wait("!document.getElementById('dialog').open", "end of the settings")

    page.eval("document.getElementById('text').focus()")
    page.type(question)
    page.key("Enter")
    page.wait(f"{LAST}?.textContent.length > 3", "streamed text")
    page.wait(IDLE, "whole answer")
    inside = "\n".join(answer.split("\n")[1:-1])
    same(page.eval(f"{LAST}.querySelector('pre code').textContent"), inside, "the golden answer, as code")
    same("tokens" in page.eval("document.querySelector('.assistant .note').textContent"), True, "its figures")
    look("answered")

    # Again, and the same, since it is greedy.
    page.eval("conversation().messages.at(-1).before = true")
    page.key("KeyR", alt=True)
    page.wait(f"!conversation().messages.at(-1).before && {IDLE}", "another answer, whole")
    same(page.eval(f"{LAST}.querySelector('pre code')?.textContent"), inside, "the same answer again")
    same(page.eval("document.querySelectorAll('#log .user').length"), 1, "one question")

    # A second conversation, stopped half-way. Dice may end it before there is a text; then it is asked again.
    page.key("KeyN", alt=True)
    page.eval(SLOW)
    page.eval("state.sampling.temperature = 2")
    page.type("a line\nand another")
    page.key("Enter")
    for more in reversed(range(TRIES)):
        page.wait(f"{LAST}?.textContent.length > 3 || {IDLE}", "streamed text")
        page.key("Escape")
        page.wait(IDLE, "end of the stopped answer")
        note = page.eval("[...document.querySelectorAll('.note')].at(-1).textContent")
        stopped = note.startswith("stopped")
        same(stopped or "tokens" in note, True, f"stopped, or finished before: {note}")
        if stopped or not more:
            break
        page.eval("conversation().messages.at(-1).before = true")
        page.key("KeyR", alt=True)
        page.wait("!conversation().messages.at(-1).before", "another answer")
    same(stopped, True, f"stopped once in {TRIES} answers: {note}")
    same(page.eval("document.activeElement.id"), "text", "the focus, afterwards")

    # Both are there after a reload, and can be gone through.
    page.open(server.url)
    same(page.eval("document.querySelectorAll('#list li').length"), 2, "conversations kept")
    page.key("ArrowUp", alt=True)
    page.wait(f"{LAST}?.querySelector('pre code')", "the first conversation")

    # Text is text.
    page.eval("conversation().messages.push({role: 'assistant', content: '<img src=x onerror=\"window.hit=1\"> <b>x</b> `<i>` **<u>**'}); show()")
    time.sleep(0.2)
    same(page.eval("[window.hit ?? 0, document.querySelectorAll('#log img, #log b, #log i, #log u').length]"), [0, 0], "markup in an answer")
    page.eval("conversation().messages.pop(); show()")

    # Dark, and narrow.
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = page.eval("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)")
    same(sum(dark[:3]) < 200, True, f"a dark page: {dark}")
    look("dark")
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
    same(page.eval("document.documentElement.scrollWidth <= 360"), True, "nothing wider than a narrow screen")
    same(page.eval("getComputedStyle(document.querySelector('aside')).display"), "none", "the list put away")
    look("narrow")
    page.eval("document.getElementById('menu').click()")
    same(page.eval("getComputedStyle(document.querySelector('aside')).display"), "flex", "the list called")
    look("narrow-menu")

    same([u for u in page.requests if not u.startswith((server.url, "about:", "data:"))], [], "requests to elsewhere")
    same(page.errors, [], "errors on the page")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("golden", type=pathlib.Path)
    parser.add_argument("--screenshots", type=pathlib.Path)
    parser.add_argument("--chromium", default="chromium")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.golden.read_text(encoding="utf-8").splitlines()]

    def look(name):
        if args.screenshots:
            args.screenshots.mkdir(parents=True, exist_ok=True)
            page.picture(args.screenshots / f"{name}.png")

    with serving(args.anemone, args.bundle) as server, chromium(args.chromium) as page:
        converse(page, server, records, look)
    print(f"{'WRONG' if WRONG else 'ok   '} the page")
    sys.exit(1 if WRONG else 0)


if __name__ == "__main__":
    main()
