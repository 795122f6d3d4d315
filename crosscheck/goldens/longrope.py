"""Makes the longrope fixture: an untrained phi3 whose logits betray a lost or misapplied attention factor.

    python longrope.py [--fixture DIR]      (default: fixtures/longrope)

Greedy tokens cannot judge longrope: ignoring the attention factor changes not one of them in a trained model of this size.
Logits can, if the weights let scores matter: seeded normal weights, scaled until attention is neither flat nor one-hot.
The weights are rounded to F16 first, so that every judge sees the same model. Files:

  longrope-f16.gguf   phi3, 2 layers, 96 of 128 dims rotated, 48 short and 48 long factors, original context 64, context 256,
                      an attention factor of sqrt(4/3), an untied head, a vocabulary of 512 cut from the miniature's
  goldens.json        {"vocabulary", "attention_factor", "sequences": [{"name": "short"|"long", "factors", "context", "ids",
                      "logits": file}], "rounding": {what: {"short": d, "long": d}}, "defects": {what: likewise}}: d is the
                      largest move of any logit when transformers runs the model with that rounding or that defect; a
                      tolerance belongs above the first and far below the second
  logits_short.npy, logits_long.npy   f32 [len(ids), 512], transformers in f32 on the F16 weights
"""

import argparse
import copy
import json
import pathlib
from unittest import mock

import gguf
import numpy as np
import torch
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.models.phi3 import modeling_phi3

import gguf_models
import phi3_gguf

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures"
SEED = 20240221
CONTEXT, ORIGINAL, ROTATED, HEAD = 256, 64, 96, 128
PAIRS = ROTATED // 2
SHORT, LONG = 48, 160  # tokens: within the original context, and beyond it


def cut(vocabulary, size):
    """The first words of a vocabulary with its control tokens after them and unused rows last: `size` tokens in all."""
    control = [t for t, kind in zip(vocabulary.tokens, vocabulary.types) if kind == gguf.TokenType.CONTROL]
    unused = 8
    words = vocabulary.tokens[: size - len(control) - unused]
    known = set(words)
    tokens = words + control
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    types = [gguf.TokenType.NORMAL] * len(words) + [gguf.TokenType.CONTROL] * len(control) + [gguf.TokenType.UNUSED] * unused
    new_id = lambda old: tokens.index(vocabulary.tokens[old])
    return gguf_models.Vocabulary(
        tokens=tokens,
        types=types,
        merges=[m for m in vocabulary.merges if m.replace(" ", "") in known and all(part in known for part in m.split(" "))],
        pre=vocabulary.pre,
        bos=new_id(vocabulary.bos),
        eos=new_id(vocabulary.eos),
        eot=new_id(vocabulary.eot),
        template=vocabulary.template,
    )


def model_of(vocabulary):
    """Seeded weights on the F16 grid (vectors stay F32, as GGUF keeps them)."""
    ramp = np.arange(PAIRS) / (PAIRS - 1)
    config = Phi3Config(
        vocab_size=len(vocabulary.tokens),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=ORIGINAL,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": ROTATED / HEAD,
            "short_factor": np.float32(1.0 + 0.8 * ramp**1.5).tolist(),
            "long_factor": np.float32(1.0 + 4.0 * ramp**1.25).tolist(),
            "original_max_position_embeddings": ORIGINAL,
        },
    )
    model = Phi3ForCausalLM(config).eval()
    model.set_attn_implementation("eager")
    draw = torch.Generator().manual_seed(SEED)
    # Standard deviations, over sqrt(fan in) where a norm precedes: q and k wide enough that scores spread over some units.
    scale = {"embed_tokens": 1.0, "qkv_proj": 1.45 / 16, "o_proj": 2.0 / 16, "gate_up_proj": 1.0 / 16, "down_proj": 1.0 / 16, "lm_head": 1.6 / 16}
    for name, parameter in model.named_parameters():
        drawn = torch.empty(parameter.shape).normal_(generator=draw)
        if parameter.ndim == 1:
            parameter.data = 1.0 + 0.1 * drawn
        else:
            parameter.data = (drawn * scale[name.split(".")[-2]]).half().float()
    return model


# --- what may move the logits a little, and what must not ------------------------------------------------------------------


def with_rope(model, **changes):
    """The same weights under other rope parameters."""
    config = copy.deepcopy(model.config)
    config.rope_parameters.update(changes)
    other = Phi3ForCausalLM(config).eval()
    other.set_attn_implementation("eager")
    other.load_state_dict(model.state_dict())
    return other


def pass_through_scaled(factor):
    """`apply_rotary_pos_emb` that multiplies the dims it does not rotate by the attention factor as well."""
    right = modeling_phi3.apply_rotary_pos_emb

    def apply(q, k, cos, sin, unsqueeze_dim=1):
        q, k = (x.clone() for x in right(q, k, cos, sin, unsqueeze_dim))
        q[..., ROTATED:] *= factor
        k[..., ROTATED:] *= factor
        return q, k

    return mock.patch.object(modeling_phi3, "apply_rotary_pos_emb", apply)


def rounded_logits(model, ids):
    """`(rounding, logits)` of the model computed rightly but less exactly."""
    folded = with_rope(model, attention_factor=1.0)
    for layer in folded.model.layers:
        rows = layer.self_attn.qkv_proj.weight.data.view(-1, HEAD, model.config.hidden_size)
        rotated = rows[: model.config.num_attention_heads + model.config.num_key_value_heads, :ROTATED]
        rotated.copy_((rotated * phi3_gguf.attention_factor(CONTEXT, ORIGINAL)).half().float())
    yield "attention factor folded into q and k rows of F16", gguf_models.logits_of(folded, ids)
    yield "every operation in f16", gguf_models.logits_of(with_rope(model).half(), ids).astype(np.float32)


def defective_logits(model, ids):
    """`(defect, logits)` of the model with each thing a reader of the file could get wrong."""
    rope = model.config.rope_parameters
    short, long = rope["short_factor"], rope["long_factor"]
    factor = phi3_gguf.attention_factor(CONTEXT, ORIGINAL)
    run = gguf_models.logits_of
    yield "attention factor lost", run(with_rope(model, attention_factor=1.0), ids)
    yield "attention factor squared", run(with_rope(model, attention_factor=factor**2), ids)
    with pass_through_scaled(factor):
        yield "attention factor on the pass-through dims too", run(model, ids)
    yield "factor sets swapped", run(with_rope(model, short_factor=long, long_factor=short), ids)
    yield "factors ignored", run(with_rope(model, short_factor=[1.0] * PAIRS, long_factor=[1.0] * PAIRS), ids)
    wide = {key: values + values[-1:] * (HEAD // 2 - PAIRS) for key, values in (("short_factor", short), ("long_factor", long))}
    yield "all 128 dims rotated, the last factor repeated", run(with_rope(model, partial_rotary_factor=1.0, **wide), ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixture", type=pathlib.Path, default=FIXTURES / "longrope", metavar="DIR")
    fixture = parser.parse_args().fixture
    torch.set_num_threads(1)
    fixture.mkdir(parents=True, exist_ok=True)

    source = gguf.GGUFReader(FIXTURES / "miniature" / "miniature-f16.gguf")
    vocabulary = cut(gguf_models.Vocabulary.read(source), 512)
    path = fixture / "longrope-f16.gguf"
    phi3_gguf.write(path, model_of(vocabulary), vocabulary, "F16", "Longrope fixture")

    # From here on the file speaks, not the model it was written from.
    model, _ = gguf_models.load(path)
    words = len([t for t in vocabulary.types if t == gguf.TokenType.NORMAL])
    draw = np.random.default_rng(SEED)
    sequences, rounding, defects = [], {}, {}
    for name, length, context in (("short", SHORT, ORIGINAL), ("long", LONG, CONTEXT)):
        ids = draw.integers(0, words, length).tolist()
        logits = gguf_models.logits_of(model, ids)
        np.save(fixture / f"logits_{name}.npy", logits)
        sequences.append({"name": name, "factors": name, "context": context, "ids": ids, "logits": f"logits_{name}.npy"})
        print(f"{name}: {length} tokens, logits {logits.std():.2f} wide, {logits.min():.1f} to {logits.max():.1f}")
        for table, variants in ((rounding, rounded_logits), (defects, defective_logits)):
            for variant, moved in variants(model, ids):
                distance = np.abs(moved - logits).max(axis=1)
                table.setdefault(variant, {})[name] = round(float(distance.max()), 4)
                print(f"{name}: logits move by {distance.max():.3f} (median over tokens {np.median(distance):.3f}): {variant}")
    record = {
        "vocabulary": len(vocabulary.tokens),
        "attention_factor": phi3_gguf.attention_factor(CONTEXT, ORIGINAL),
        "sequences": sequences,
        "rounding": rounding,
        "defects": defects,
    }
    (fixture / "goldens.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
