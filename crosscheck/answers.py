"""Judges a bundle's answers: `python answers.py ANEMONE BUNDLE GOLDEN --from messages|ids [--margin M] [-- OPTION...]`

Asks `ANEMONE generate BUNDLE --batch` for a greedy answer to every prompt of GOLDEN (fixtures/*/prompts.jsonl), from its messages or
from its ids, and wants the golden's prompt ids and answer, token for token. With `--margin M` an answer may part from the
golden where the reference's own two best logits were closer than M. What follows `--` goes to `generate`.

One line for each prompt that is wrong and one for the whole; exit 0 when all are right, 1 otherwise.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def ask(command, records, source):
    """The answers by id."""
    key = {"messages": "messages", "ids": "prompt_ids"}[source]
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as batch:
        for record in records:
            print(json.dumps({"id": record["id"], source: record[key]}), file=batch)
        batch.flush()
        run = subprocess.run([*command, "--batch", batch.name], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if run.returncode:
        sys.exit(f"WRONG: {' '.join(map(str, command))} exits with {run.returncode}")
    return {answer["id"]: answer for answer in lines(run.stdout)}


def fault(record, answer, margin):
    """What is wrong with an answer, or None."""
    if answer is None:
        return "no answer"
    if answer["prompt_ids"] != record["prompt_ids"]:
        return f"prompt ids {answer['prompt_ids']} instead of {record['prompt_ids']}"
    found, expected = answer["ids"], record["expected_ids"]
    if found == expected:
        return None
    at = next((i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), min(len(found), len(expected)))
    if margin is not None and at < len(expected) and record["margins"][at] < margin:
        return None
    return f"differs at token {at} of {len(expected)}: {found[at : at + 3]} instead of {expected[at : at + 3]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("golden", type=pathlib.Path)
    parser.add_argument("--from", dest="source", choices=("messages", "ids"), required=True)
    parser.add_argument("--margin", type=float)
    own, extra = sys.argv[1:], []
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)

    records = lines(args.golden.read_text(encoding="utf-8"))
    longest = max(len(record["expected_ids"]) for record in records)
    answers = ask([args.anemone, "generate", args.bundle, "--greedy", "--max-tokens", str(longest), *extra], records, args.source)
    faults = {record["id"]: fault(record, answers.get(record["id"]), args.margin) for record in records}
    wrong = {number: why for number, why in faults.items() if why}
    for number, why in wrong.items():
        print(f"prompt {number}: {why}")
    equal = sum(r["expected_ids"] == answers.get(r["id"], {}).get("ids") for r in records)
    print(f"{'WRONG' if wrong else 'ok   '} {args.bundle}, from {args.source}: {equal} of {len(records)} answers equal")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
