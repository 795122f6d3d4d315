"""Judges what the commands print with `--json` by the schemas that they publish: `python schemas.py ANEMONE MODEL`

Every command that has the option is run on a small model, and what it prints is held to `anemone schema COMMAND` by the
jsonschema package. Then the schema is held to the judge: with any field less that it requires, the same output must be refused.

One line for each command; exit 0 when all is right, 1 otherwise.
"""

import argparse
import contextlib
import copy
import hashlib
import http.server
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading

import jsonschema
import numpy as np

from serving import WRONG, same


def run(anemone, *args, code=0, env=None):
    """What a command prints on stdout."""
    done = subprocess.run([anemone, *map(str, args)], capture_output=True, text=True, encoding="utf-8", env=env, check=False)
    same(done.returncode, code, f"{' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def hub(content):
    """A stand-in of the model hub, with a repository of one model and another of two; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = content
            if self.path.startswith("/api/models/"):
                names = ["m.gguf", "n.gguf"][: 1 + ("two" in self.path)]
                lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                body = json.dumps({"sha": 40 * "a", "siblings": [{"rfilename": n, "lfs": lfs} for n in names]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def without_each(value, schema):
    """Copies of a document, each without one field of its top that is required, whatever branch of the schema it takes."""
    for branch in schema.get("anyOf", [schema]):
        for name in branch.get("required", []):
            if isinstance(value, dict) and name in value:
                less = copy.deepcopy(value)
                del less[name]
                yield name, less


def judge(name, schema, text):
    before = len(WRONG)
    validator = jsonschema.Draft202012Validator(schema)
    values = [json.loads(line) for line in text.splitlines()] if name == "generate" else [json.loads(text)]
    for value in values:
        for error in validator.iter_errors(value):
            same(error.message[:200], None, f"{name}: at {error.json_path}")
        for field, less in without_each(value, schema):
            same(validator.is_valid(less), False, f"{name}: without {field}")
    return len(WRONG) == before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("model", type=pathlib.Path)
    args = parser.parse_args()
    anemone, model = args.anemone, args.model

    published = run(anemone, "schema").split()
    commands = re.findall(r"^  (\w+)  ", run(anemone, "--help"), re.MULTILINE)
    having = [c for c in commands if c != "help" and re.search(r"^ +(-\w, )?--json\b", run(anemone, c, "--help"), re.MULTILINE)]
    same(sorted(having), published, "every command with --json has a schema, and no other")

    with tempfile.TemporaryDirectory(prefix="schemas-") as folder:
        folder = pathlib.Path(folder)
        bundle = folder / "bundle"
        outputs = {}

        def add(name, *more, **how):
            outputs.setdefault(name, []).append(run(anemone, name, *more, **how))

        add("build", model, "-o", bundle, "--topology", "0-2,2-4", "--intent", "judge the schemas", "--json", "--quiet")
        add("build", model, "-o", folder / "no", "--dry-run", "--json")
        package = bundle / "layers" / "00-02.mlpackage"
        for more in ([model], [bundle], [package], [bundle, "--plan"]):
            add("inspect", *more, "--json")
        gates = "contract,compile,residency,weights"
        add("gate", bundle, "--source", model, "--only", gates, "--json", "-", "--quiet")
        add("check", package, "--json")
        add("journal", bundle, "--json")
        question = ["--prompt", "write hello world in Erlang", "--greedy", "--max-tokens", 3]
        add("generate", bundle, *question, "--json", "--logits")
        add("smoke", bundle, "--json", "--quiet")
        add("bench", bundle, "--json", "--quiet", "--prompt", 8, "--generate", 4, "--repeat", 1)
        add("doctor", "--json")
        add("sweep", model, "--evidence", folder / "sweep.jsonl", "--tries", 1, "--json", "--quiet")
        add("export", bundle, "--runtime-meta", "--unproven", "--json", "--quiet")
        head = json.loads(run(anemone, "inspect", bundle / "head" / "0.mlpackage", "--json"))
        port = head["functions"][0]["inputs"][0]
        np.savez(folder / "in.npz", **{port["name"]: np.zeros(port["shape"], np.float16)})
        outs = {o["name"]: np.full(o["shape"], np.inf, np.float32) for o in head["functions"][0]["outputs"]}
        np.savez(folder / "out.npz", **outs)
        runs = ["run", bundle / "head" / "0.mlpackage", "--inputs", folder / "in.npz", "--json"]
        outputs["run"] = [run(anemone, *runs), run(anemone, *runs, "--expect", folder / "out.npz", code=1)]
        same(len(json.loads(outputs["run"][1])["beyond"]) > 0, True, "run: what is beyond the tolerances")

        cache = folder / "cache"
        with hub(model.read_bytes()) as address:
            env = {"ANEMONE_CACHE": str(cache), "HF_ENDPOINT": address}
            add("pull", "hf:owner/one", "--json", "--quiet", env=env)
            add("pull", "hf:owner/two", "--json", "--quiet", env=env, code=2)
        (cache / "bundles").mkdir()
        bundle.rename(cache / "bundles" / "m.anemone")
        add("models", "--json", env=env)
        same([e["kind"] for e in json.loads(outputs["models"][0])], ["model", "bundle"], "models: both kinds")

        for name in published:
            schema = json.loads(run(anemone, "schema", name))
            jsonschema.Draft202012Validator.check_schema(schema)
            texts = outputs.pop(name, [])
            same(len(texts) > 0, True, f"{name}: an output to judge")
            good = all([judge(name, schema, text) for text in texts])
            print(f"{'ok   ' if good else 'WRONG'} {name}", flush=True)
    same(outputs, {}, "outputs without a schema")
    sys.exit(1 if WRONG else 0)


if __name__ == "__main__":
    main()
