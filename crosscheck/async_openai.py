"""Judges the server with the async-openai client, a crate of its own: `python async_openai.py ANEMONE BUNDLE GOLDEN`

Compiles `crosscheck/async-openai`, starts a server, and runs the one against the other. Exit 0 when all is right, 1 otherwise.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

from serving import serving

HERE = pathlib.Path(__file__).parent / "async-openai"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("golden", type=pathlib.Path)
    args = parser.parse_args()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "async-openai"
    build = ["cargo", "build", "--locked", "--quiet", "--manifest-path", HERE / "Cargo.toml", "--target-dir", target]
    subprocess.run(list(map(str, build)), check=True)
    model = json.loads((args.bundle / "anemone.json").read_text(encoding="utf-8"))["name"]
    with serving(args.anemone, args.bundle) as server:
        client = [target / "debug" / "anemone-async-openai", server.url, model, args.golden]
        done = subprocess.run(list(map(str, client)), timeout=300, check=False)
    if done.returncode:
        print("WRONG async-openai")
    sys.exit(1 if done.returncode else 0)


if __name__ == "__main__":
    main()
