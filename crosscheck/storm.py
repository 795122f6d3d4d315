"""Judges the server under many conversations at once: `python storm.py ANEMONE BUNDLE GOLDEN [--conversations N] [--seconds S]`

N threads converse for S seconds, two turns each, greedy or sampled with a seed, streamed or whole. At random they leave in the
middle of an answer, read slowly, send too much, or break their connection. More of them come than the server has places and
sessions for. Wanted: every answer that is finished is the one a fresh process gives; nothing but what should be refused is
refused; nothing hangs; memory stays within the caches' budget and a fixed rest; and the server ends cleanly.

The long form is `--conversations 64 --seconds 600`. The dice are thrown with a fixed seed. Exit 0 when all is right, 1 otherwise.
"""

import argparse
import collections
import json
import pathlib
import random
import socket
import sys
import threading
import time

import openai

from serving import fresh, serving

SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
TURNS = 2
MAX_TOKENS = 48
CACHE_MIB = 32


def scripts(anemone, bundle, records):
    """Conversations whose answers a fresh process gave: `[(sampled, [(messages, text)])]`."""
    every = []
    for sampled in (False, True):
        options = ["--temperature", 1, "--top-p", 0.9, "--seed", 7] if sampled else ["--greedy"]
        conversations = [list(r["messages"]) for r in records]
        turns = [[] for _ in records]
        for turn in range(TURNS):
            answers = fresh(anemone, bundle, conversations, "--max-tokens", MAX_TOKENS, *options)
            for i, answer in enumerate(answers):
                turns[i].append((list(conversations[i]), answer["text"]))
                question = records[(i + 7 * turn + 1) % len(records)]["messages"][-1]
                conversations[i] += [{"role": "assistant", "content": answer["text"]}, question]
        every += [(sampled, t) for t in turns]
    return every


class Storm:
    def __init__(self, server, model, scripts, until):
        self.server, self.model, self.scripts, self.until = server, model, scripts, until
        self.ai = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        self.counts = collections.Counter()
        self.wrong = []
        self.lock = threading.Lock()

    def count(self, what, wrong=None):
        with self.lock:
            self.counts[what] += 1
            if wrong:
                self.wrong.append(wrong)

    def converse(self, number):
        dice = random.Random(number)
        while time.monotonic() < self.until:
            try:
                sampled, turns = dice.choice(self.scripts)
                for messages, expected in turns:
                    if not self.turn(dice, number, sampled, messages, expected):
                        break
                if dice.random() < 0.1:
                    self.rudeness(dice)
            except openai.RateLimitError as error:
                self.count("sent away")
                if int(error.response.headers["retry-after"]) < 1:
                    self.count("wrong", "a 429 without Retry-After")
                time.sleep(dice.uniform(0.05, 0.3))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                self.count("wrong", f"{type(error).__name__}: {error}")

    def turn(self, dice, number, sampled, messages, expected):
        """One question; whether its answer was heard to the end."""
        how = SAMPLED if sampled else {"temperature": 0}
        ask = dict(model=self.model, messages=messages, max_tokens=MAX_TOKENS, user=f"user {number}", **how)
        if dice.random() < 0.3:
            found = self.ai.chat.completions.create(**ask).choices[0].message.content
        else:
            leaves = dice.randrange(1, 20) if dice.random() < 0.3 else None
            pause = 0.05 if dice.random() < 0.1 else 0
            found = ""
            with self.ai.chat.completions.create(**ask, stream=True) as stream:
                for i, chunk in enumerate(stream):
                    found += chunk.choices[0].delta.content or ""
                    if i == leaves:
                        self.count("left")
                        return False
                    time.sleep(pause)
        right = found == expected
        self.count("finished" if right else "wrong", None if right else f"{messages[-1]}: {found!r} for {expected!r}")
        return right

    def rudeness(self, dice):
        """Requests that are too large, broken, or cut off."""
        kind = dice.choice(["large", "broken", "cut"])
        body = {"large": b"x" * (3 << 20), "broken": b'{"messages": [', "cut": b"{"}[kind]
        length = len(body) + (kind == "cut")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as line:
            try:
                line.sendall(head.encode() + body)
                if kind != "cut":
                    # As a stream gives it: what ends before a status was closed on us, as a reset would.
                    reply = b""
                    while reply.count(b" ") < 2:
                        more = line.recv(100)
                        if not more:
                            raise ConnectionResetError
                        reply += more
                    status = reply.split()[1].decode()
                    right = status in ({"large": "413", "broken": "400"}[kind], "429")
                    self.count("refused" if right else "wrong", None if right else f"{kind}: {status}")
            except (BrokenPipeError, ConnectionResetError):
                # The server had answered and closed before all was sent.
                self.count("refused")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("golden", type=pathlib.Path)
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--prompts", type=int, default=10, help="how many of the golden prompts take part")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.golden.read_text(encoding="utf-8").splitlines()][: args.prompts]
    model = json.loads((args.bundle / "anemone.json").read_text(encoding="utf-8"))["name"]
    script = scripts(args.anemone, args.bundle, records)
    places = max(2, args.conversations * 3 // 4)
    options = ["--max-requests", places, "--cache-mib", CACHE_MIB, "--workers", 2, "--threads", 1]
    with serving(args.anemone, args.bundle, *options) as server:
        rest = server.memory()
        storm = Storm(server, model, script, time.monotonic() + args.seconds)
        threads = [threading.Thread(target=storm.converse, args=(n,), daemon=True) for n in range(args.conversations)]
        for thread in threads:
            thread.start()
        most = 0
        while any(t.is_alive() for t in threads) and time.monotonic() < storm.until + 120:
            most = max(most, server.memory())
            time.sleep(0.2)
        hanging = sum(t.is_alive() for t in threads)
        if hanging:
            storm.wrong.append(f"{hanging} conversations hang")
        # Caches, what a working session needs besides, and answers on their way.
        budget = rest + (3 * CACHE_MIB + 96 << 20)
        if most > budget:
            storm.wrong.append(f"{most >> 20} MiB of memory, expected at most {budget >> 20}")
        code = server.end()
        if code:
            storm.wrong.append(f"exit code {code}: {''.join(server.log[-3:])}")
    for wrong in storm.wrong[:20]:
        print(f"  {wrong}")
    figures = ", ".join(f"{n} {what}" for what, n in sorted(storm.counts.items()))
    verdict = "WRONG" if storm.wrong or not storm.counts["finished"] else "ok   "
    print(f"{verdict} {args.conversations} conversations: {figures}; {rest >> 20} to {most >> 20} MiB")
    sys.exit(verdict == "WRONG")


if __name__ == "__main__":
    main()
