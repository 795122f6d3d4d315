"""Goldens of SmolLM2-135M-Instruct: what transformers answers in f32 on the weights dequantised from the very GGUF.

    python smollm2.py [--model M.gguf] [--fixture DIR]      (default: what fixtures/fetch smollm2 prints; fixtures/smollm2)

Reads DIR/text.txt and writes, in DIR:
  prompts.jsonl   16 chat prompts, one object a line: id, messages, rendered, prompt_ids, expected_ids (48 greedy tokens, or
                  fewer if a stop token ends them; it is included), margins (top logit less the second, at each expected id),
                  min_margin, expected_text (without control tokens), finish ("stop" or "length"),
                  first_top (the eight largest logits at the last prompt position: [[id, logit], ...])
  text.json       {"ids": the first 2000 tokens of text.txt, "nll": mean over ids[1:] of -ln p(id | all before it),
                  "nlls": each of the 1999 to five places,
                  "top": [{"position": p, "logsumexp": l, "ids": [...], "logits": [...]}, ...]: the eight largest logits after
                  ids[0..=p], for every hundredth position and the last}
  text_last.npy   f32 [49152]: the logits after the last of the 2000 ids
"""

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import torch

import gguf_models

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 48
TEXT_TOKENS = 2000
TOP = 8


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# Chosen to reach every corner of template and tokenizer: the default and a given system prompt, several turns, digits,
# code, blank lines, trailing space, and scripts beyond ASCII.
PROMPTS = [
    [user("What is the capital of France?")],
    [user("write hello world in Erlang")],
    [user("Who are you?")],
    [system("You are a pirate. Answer in one sentence."), user("Where is the treasure?")],
    [user("Give me three tips for sleeping well.")],
    [user("What is 17 + 25? Answer with the number 42 or 43.")],
    [user("My name is Ada."), assistant("Nice to meet you, Ada!"), user("What is my name?")],
    [user("Translate to French: The cat sleeps on the chair.")],
    [user("def add(a, b):\n    return a + b\n\nExplain this function.")],
    [user("Qu'est-ce qu'une marée ? Réponds en français.")],
    [user("日本の首都はどこですか？")],
    [system("You answer in JSON."), user("Give the name and the age of a person.")],
    [user("Why is the sky blue?  "), assistant("Because air scatters blue light most."), user("And at sunset?")],
    [user("List the numbers from 1 to 12, separated by commas.")],
    [user("Summarize in one line:\n\nThe moon pulls on the sea, and the sea rises a little toward it.\n\tThe sun does the same, more weakly.")],
    [user("Write a short poem about the sea 🌊.")],
]


def chat_goldens(model, vocabulary, tokenizer):
    for number, messages in enumerate(PROMPTS):
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        ids, margins, first = gguf_models.greedy(model, prompt, LIMIT, vocabulary.stops)
        best = np.argsort(-first)[:TOP]
        yield {
            "id": number,
            "messages": messages,
            "rendered": rendered,
            "prompt_ids": prompt,
            "expected_ids": ids,
            "margins": [round(m, 4) for m in margins],
            "min_margin": round(min(margins), 4),
            "expected_text": tokenizer.decode(ids, skip_special_tokens=True),
            "finish": "stop" if ids[-1] in vocabulary.stops else "length",
            "first_top": [[int(i), round(float(first[i]), 4)] for i in best],
        }


def text_goldens(model, tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:TEXT_TOKENS]
    if len(ids) < TEXT_TOKENS:
        sys.exit(f"text.txt has {len(ids)} tokens, {TEXT_TOKENS} are needed")
    logits = gguf_models.logits_of(model, ids)
    total = np.array([np.logaddexp.reduce(row.astype(np.float64)) for row in logits])
    nlls = total[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]
    top = []
    for position in [*range(0, len(ids), 100), len(ids) - 1]:
        best = np.argsort(-logits[position])[:TOP]
        values = [round(float(logits[position, i]), 4) for i in best]
        top.append({"position": position, "logsumexp": round(float(total[position]), 4), "ids": best.tolist(), "logits": values})
    return {"ids": ids, "nll": float(nlls.mean()), "nlls": [round(float(n), 5) for n in nlls], "top": top}, logits[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--fixture", type=pathlib.Path, default=ROOT / "fixtures" / "smollm2", metavar="DIR")
    args = parser.parse_args()
    path = args.model or subprocess.check_output([sys.executable, ROOT / "fixtures" / "fetch", "smollm2"], text=True).strip()

    model, vocabulary = gguf_models.load(path)
    tokenizer = vocabulary.tokenizer()
    lines = []
    for record in chat_goldens(model, vocabulary, tokenizer):
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        print(f"{record['id']:2} {record['finish']:6} margin {record['min_margin']:.4f}: {record['expected_text']!r}")
    (args.fixture / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")

    record, last = text_goldens(model, tokenizer, (args.fixture / "text.txt").read_text(encoding="utf-8"))
    (args.fixture / "text.json").write_text(json.dumps(record) + "\n")
    np.save(args.fixture / "text_last.npy", last)
    print(f"text: {len(record['ids'])} tokens, NLL {record['nll']:.5f}")


if __name__ == "__main__":
    main()
