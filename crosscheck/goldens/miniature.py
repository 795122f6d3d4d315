"""Goldens of the miniature: transformers' greedy answers, its logits, and what each contract defect would do.

    python miniature.py check  [--model M.gguf] [--fixture DIR]     compare the committed goldens with transformers run anew
    python miniature.py write  [--model M.gguf] [--fixture DIR]     write them anew, from the messages they hold

Files, in DIR (default: fixtures/miniature):
  prompts.jsonl, unseen.jsonl   one object a line: id, kind, messages, rendered, prompt_ids, expected_ids (the stop token
                                included), expected_text, target_text, matches_target, min_margin, n_prompt, n_expected
  logits_last.npy               f32 [40, vocabulary]: the logits at the last prompt position of prompts.jsonl
  mutations.json                for each defect of the rotary embedding: how many of the 40 answers survive
"""

import argparse
import contextlib
import json
import pathlib
import sys
from unittest import mock

import numpy as np
import torch
from transformers.models.phi3 import modeling_phi3

import gguf_models

FIXTURE = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "miniature"
LIMIT = 160


def answer(model, vocabulary, tokenizer, record):
    """The record with everything that transformers says of its messages."""
    messages = record["messages"]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    ids, margins, first = gguf_models.greedy(model, prompt, LIMIT, vocabulary.stops)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    new = {
        "kind": record["kind"],
        "messages": messages,
        "rendered": rendered,
        "prompt_ids": prompt,
        "expected_ids": ids,
        "expected_text": text,
        "target_text": record["target_text"],
        "matches_target": text == record["target_text"],
        "min_margin": round(min(margins), 3),
        "n_prompt": len(prompt),
        "n_expected": len(ids),
        "id": record["id"],
    }
    return new, first


# --- defects -----------------------------------------------------------------------------------------------------------


def turn(x, cos, sin, low, high):
    """Rotates the pairs (low[i], high[i]) of the last axis by the angles whose cosines and sines are given."""
    out = x.clone()
    out[..., low] = x[..., low] * cos - x[..., high] * sin
    out[..., high] = x[..., high] * cos + x[..., low] * sin
    return out


def rotary(pairs, exponent_over):
    """An `apply_rotary_pos_emb` that rotates the given index pairs with frequencies 10000^(-2i/exponent_over)."""
    low, high = (torch.tensor(side, dtype=torch.long) for side in pairs)

    def apply(q, k, cos, sin, unsqueeze_dim=1):
        rates = 1.0 / (10000.0 ** (torch.arange(0, 2 * len(low), 2).float() / exponent_over))
        angles = POSITIONS.get()[:, None].float() * rates
        c, s = angles.cos(), angles.sin()
        return turn(q, c, s, low, high), turn(k, c, s, low, high)

    return apply


class Positions:
    """The positions of the forward under way: a defective rotary cannot read them back from cosines."""

    def get(self):
        return self.current

    @contextlib.contextmanager
    def watched(self, model):
        hook = model.model.rotary_emb.register_forward_pre_hook(
            lambda module, args, kwargs: setattr(self, "current", kwargs["position_ids"][0]), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()


POSITIONS = Positions()


def span(n, step=1, start=0):
    return list(range(start, start + n * step, step))


DEFECTS = {
    "none: 96 of 128 rotated, written out by hand": rotary((span(48), span(48, start=48)), 96),
    "all 128 rotated": rotary((span(64), span(64, start=64)), 128),
    "96 rotated, exponent over 128": rotary((span(48), span(48, start=48)), 128),
    "pairs i, i+64 over 48 pairs": rotary((span(48), span(48, start=64)), 96),
    "interleaved pairs": rotary((span(48, 2), span(48, 2, 1)), 96),
    "last 96 instead of first": rotary((span(48, start=32), span(48, start=80)), 96),
    "64 rotated": rotary((span(32), span(32, start=32)), 64),
    "nothing rotated": lambda q, k, cos, sin, unsqueeze_dim=1: (q, k),
}


def survivors(model, vocabulary, records, logits):
    alive, distance = [], 0.0
    for record, truth in zip(records, logits):
        ids, _, first = gguf_models.greedy(model, record["prompt_ids"], LIMIT, vocabulary.stops)
        distance = max(distance, float(np.abs(first - truth).max()))
        if ids == record["expected_ids"]:
            alive.append(record["id"])
    return {"match": len(alive), "of": len(records), "survivors": alive, "max_dlogit": round(distance, 6)}


def mutations(model, vocabulary, records, logits):
    table = {}
    with POSITIONS.watched(model):
        for name, apply in DEFECTS.items():
            with mock.patch.object(modeling_phi3, "apply_rotary_pos_emb", apply):
                table[name] = survivors(model, vocabulary, records, logits)
    for layer in model.model.layers:
        weight = layer.mlp.gate_up_proj.weight
        weight.data = torch.cat(weight.data.chunk(2)[::-1])
    table["gate and up swapped"] = survivors(model, vocabulary, records, logits)
    for layer in model.model.layers:
        weight = layer.mlp.gate_up_proj.weight
        weight.data = torch.cat(weight.data.chunk(2)[::-1])
    return table


# --- files -------------------------------------------------------------------------------------------------------------


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def goldens(model, vocabulary, prompts, unseen):
    """What all four files should hold, as (prompts, unseen, logits, mutations)."""
    tokenizer = vocabulary.tokenizer()
    answered = [answer(model, vocabulary, tokenizer, r) for r in prompts]
    logits = np.stack([first for _, first in answered])
    prompts = [record for record, _ in answered]
    unseen = [answer(model, vocabulary, tokenizer, r)[0] for r in unseen]
    return prompts, unseen, logits, mutations(model, vocabulary, prompts, logits)


def write(fixture, prompts, unseen, logits, table):
    for name, records in (("prompts.jsonl", prompts), ("unseen.jsonl", unseen)):
        lines = [json.dumps(r, ensure_ascii=False) + "\n" for r in records]
        (fixture / name).write_text("".join(lines), encoding="utf-8")
    np.save(fixture / "logits_last.npy", logits)
    (fixture / "mutations.json").write_text(json.dumps(table, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("check", "write"))
    parser.add_argument("--model", type=pathlib.Path, help="GGUF to run (default: DIR/miniature-f16.gguf)")
    parser.add_argument("--fixture", type=pathlib.Path, default=FIXTURE, metavar="DIR")
    args = parser.parse_args()
    torch.set_num_threads(1)

    model, vocabulary = gguf_models.load(args.model or args.fixture / "miniature-f16.gguf")
    old = read(args.fixture / "prompts.jsonl"), read(args.fixture / "unseen.jsonl")
    prompts, unseen, logits, table = goldens(model, vocabulary, *old)
    for name, row in table.items():
        print(f"{row['match']:3} of {row['of']} survive, logits move by {row['max_dlogit']:9.6f}: {name}")
    if args.action == "write":
        write(args.fixture, prompts, unseen, logits, table)
        return
    fields = ("rendered", "prompt_ids", "expected_ids", "expected_text")
    wrong = [n["id"] for new, was in zip((prompts, unseen), old) for n, o in zip(new, was) if any(n[f] != o[f] for f in fields)]
    distance = float(np.abs(logits - np.load(args.fixture / "logits_last.npy")).max())
    print(f"{len(prompts) + len(unseen) - len(wrong)} of {len(prompts) + len(unseen)} answers equal; logits within {distance:.6f}")
    sys.exit(1 if wrong or distance > 0.01 else 0)


if __name__ == "__main__":
    main()
