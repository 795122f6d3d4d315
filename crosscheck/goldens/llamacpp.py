"""llama.cpp as a second judge of the goldens: `python llamacpp.py answers|longrope [...]`

    python llamacpp.py answers [--model M.gguf] [--prompts P.jsonl] [--f32]   its greedy answers against `expected_text`: from
                                                                      ids, from rendered text, from messages by its template
    python llamacpp.py longrope                                       its log-probabilities after each sequence of
                                                                      fixtures/longrope against the goldens' logits

It is optional and no part of CI: `pip install xllamacpp==2026.10.11549`, a prebuilt llama.cpp, beside gguf and numpy.
Over quantised weights llama.cpp rounds the activations to 8 bits too, which turns close calls; with --f32 it does not.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import gguf
import numpy as np

# llama.cpp rounds a context up to this, and chooses the factors by the rounded one.
SMALLEST_CONTEXT = 256
FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures"


def server(model, context):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.cpuparams.n_threads = 1
    params.warmup, params.use_jinja, params.verbosity = False, True, 0
    return xllamacpp.Server(params)


def body(reply):
    """A reply that is an error becomes one."""
    if "error" in reply or "choices" not in reply:
        raise RuntimeError(reply)
    return reply["choices"][0]


GREEDY = {"temperature": 0.0, "top_k": 1, "cache_prompt": False, "seed": 0}


def answers(model, prompts):
    llama, wrong = server(model, 1024), 0
    records = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    for record in records:
        limit = len(record["expected_ids"])
        chat = {"messages": record["messages"], "max_tokens": limit, **GREEDY}
        texts = {}
        for source in ("prompt_ids", "rendered"):
            texts[source] = body(llama.handle_completions({"prompt": record[source], "n_predict": limit, **GREEDY}))["text"]
        texts["messages"] = body(llama.handle_chat_completions(chat))["message"]["content"]
        for source, text in texts.items():
            if text.strip() != record["expected_text"].strip():
                print(f"{record['id']} from {source}: {text!r} instead of {record['expected_text']!r}")
                wrong += 1
    print(f"{len(records)} prompts, three ways each: {wrong} differ")
    return wrong


def dequantised(model, copy):
    """A copy of the file with every tensor in F32."""
    reader = gguf.GGUFReader(model)
    out = gguf.GGUFWriter(copy, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            out.add_key_value(key, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        out.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return copy


def with_original_context(model, copy, context):
    """A copy of the file which says that its factors become long ones beyond `context`."""
    shutil.copyfile(model, copy)
    field = gguf.GGUFReader(copy, "r+").fields["phi3.rope.scaling.original_context_length"]
    field.parts[field.data[0]][0] = context
    return copy


def longrope(scratch):
    folder, wrong = FIXTURES / "longrope", 0
    goldens = json.loads((folder / "goldens.json").read_text())
    for sequence in goldens["sequences"]:
        logits = np.load(folder / sequence["logits"])[-1].astype(np.float64)
        expected = logits - np.logaddexp.reduce(logits)
        model, context = folder / "longrope-f16.gguf", max(sequence["context"], SMALLEST_CONTEXT)
        if sequence["factors"] == "short":
            model = with_original_context(model, pathlib.Path(scratch, "short.gguf"), context)
        llama = server(model, context)
        found = np.full(goldens["vocabulary"], np.nan)
        request = {"prompt": sequence["ids"], "n_predict": 1, "n_probs": goldens["vocabulary"], **GREEDY}
        for entry in body(llama.handle_completions(request))["logprobs"]["content"][0]["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        distance = np.nanmax(np.abs(found - expected))
        print(f"{sequence['name']}: {np.isfinite(found).sum()} log-probabilities within {distance:.4f}")
        wrong += not distance < 0.1
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("answers", "longrope"))
    parser.add_argument("--model", type=pathlib.Path, default=FIXTURES / "miniature" / "miniature-f16.gguf")
    parser.add_argument("--prompts", type=pathlib.Path, default=FIXTURES / "miniature" / "prompts.jsonl")
    parser.add_argument("--f32", action="store_true", help="run a copy of the model with its weights dequantised to F32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.what == "longrope":
            wrong = longrope(scratch)
        else:
            wrong = answers(dequantised(args.model, pathlib.Path(scratch, "f32.gguf")) if args.f32 else args.model, args.prompts)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
