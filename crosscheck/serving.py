"""What the judges of the server share: a server of one's own, the answers a fresh process gives, and what was wrong."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import threading

WRONG = []


def same(found, expected, what):
    """Says what is not as expected, and keeps it for the end."""
    if found != expected:
        WRONG.append(what)
        print(f"  {what}: {found!r} instead of {expected!r}")


class Server:
    """`ANEMONE serve BUNDLE` on a free port."""

    def __init__(self, anemone, bundle, *options, env=None):
        command = [anemone, "serve", bundle, "--port", "0", *options]
        self.process = subprocess.Popen(
            list(map(str, command)), stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"http://([\d.]+):(\d+)", line):
                self.port = int(match[2])
                self.url = f"http://127.0.0.1:{self.port}"
                break
        else:
            raise SystemExit(f"WRONG: {' '.join(map(str, command))} did not start: {''.join(self.log)}")
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def memory(self):
        """Bytes in memory."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])

    def end(self, timeout=60):
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextlib.contextmanager
def serving(*args, **more):
    """A server that is gone afterwards."""
    server = Server(*args, **more)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def fresh(anemone, bundle, conversations, *options):
    """Answers of one process to lists of messages, each in a session of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as batch:
        for number, messages in enumerate(conversations):
            print(json.dumps({"id": number, "messages": messages}), file=batch)
        batch.flush()
        command = [anemone, "generate", bundle, "--batch", batch.name, *options]
        run = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]
