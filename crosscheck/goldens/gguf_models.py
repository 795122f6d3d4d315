"""A GGUF file as transformers runs it: the judge behind every golden.

transformers is a program nobody of this project wrote; all that is ours here is the bridge. The weights are the `gguf`
package's own dequantisation of the very file, in f32; the tokenizer is the `tokenizers` package's, fed from the file's
metadata; the chat template is rendered by transformers. Nothing is guessed: a key that is missing is a KeyError.
"""

import dataclasses
import json

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

# The split pattern of the o200k family of vocabularies, which llama.cpp calls "gpt-4o".
GPT_4O = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def pre_tokenizer(name):
    """The pre-tokenizer of that llama.cpp name, as the model's own tokenizer.json would spell it."""
    if name == "gpt-4o":
        split = pre_tokenizers.Split(Regex(GPT_4O), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    raise ValueError(f"pre-tokenizer {name!r} is not one this bridge knows")


@dataclasses.dataclass
class Vocabulary:
    """The `tokenizer.*` keys of a GGUF."""

    tokens: list
    types: list
    merges: list
    pre: str
    bos: int
    eos: int
    eot: int | None
    template: str

    @classmethod
    def read(cls, reader):
        key = lambda name: reader.fields[f"tokenizer.{name}"].contents()
        eot = reader.fields.get("tokenizer.ggml.eot_token_id")
        return cls(
            tokens=key("ggml.tokens"),
            types=key("ggml.token_type"),
            merges=key("ggml.merges"),
            pre=key("ggml.pre"),
            bos=key("ggml.bos_token_id"),
            eos=key("ggml.eos_token_id"),
            eot=eot.contents() if eot else None,
            template=key("chat_template"),
        )

    @property
    def stops(self):
        return {self.eos} | ({self.eot} if self.eot is not None else set())

    def tokenizer(self):
        special = {i for i, kind in enumerate(self.types) if kind == gguf.TokenType.CONTROL}
        words = {t: i for i, (t, kind) in enumerate(zip(self.tokens, self.types)) if kind != gguf.TokenType.UNUSED}
        fast = Tokenizer(models.BPE(vocab=words, merges=[tuple(m.split(" ")) for m in self.merges]))
        fast.pre_tokenizer = pre_tokenizer(self.pre)
        fast.decoder = decoders.ByteLevel()
        fast.add_special_tokens([AddedToken(self.tokens[i], special=True, normalized=False) for i in sorted(special)])
        return PreTrainedTokenizerFast(
            tokenizer_object=fast,
            bos_token=self.tokens[self.bos],
            eos_token=self.tokens[self.eos],
            chat_template=self.template,
            clean_up_tokenization_spaces=False,
        )


def json_of(tokenizer):
    """The content of the tokenizer.json that a `tokenizers.Tokenizer` would save."""
    return json.loads(tokenizer.to_str())


def weights_of(reader):
    """Every tensor by name, dequantised to f32 by the gguf package."""
    return {
        t.name: torch.from_numpy(np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32))
        for t in reader.tensors
    }


def half_split(rows, heads):
    """Undoes llama.cpp's reordering of a llama q or k projection: pairs (2i, 2i+1) of a head back to (i, i + n/2)."""
    out, width = rows.shape
    return rows.view(heads, out // heads // 2, 2, width).transpose(1, 2).reshape(out, width)


def build_llama(reader, weights):
    key = lambda name: reader.fields[f"llama.{name}"].contents()
    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(weights["token_embd.weight"]),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=key("context_length"),
        rms_norm_eps=float(key("attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(key("rope.freq_base"))},
        tie_word_embeddings="output.weight" not in weights,
    )
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for layer in range(config.num_hidden_layers):
        for name, count in (("attn_q", heads), ("attn_k", kv_heads)):
            key_ = f"blk.{layer}.{name}.weight"
            weights[key_] = half_split(weights[key_], count)
    return fill(LlamaForCausalLM(config), weights, names)


PHI3_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}


def build_phi3(reader, weights):
    key = lambda name: reader.fields[f"phi3.{name}"].contents()
    heads, width = key("attention.head_count"), key("embedding_length")
    rope = {
        "rope_type": "default",
        "rope_theta": float(key("rope.freq_base")),
        "partial_rotary_factor": key("rope.dimension_count") / (width // heads),
    }
    original = key("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in weights:
        rope.update(
            rope_type="longrope",
            short_factor=weights.pop("rope_factors_short.weight").tolist(),
            long_factor=weights.pop("rope_factors_long.weight").tolist(),
            original_max_position_embeddings=original,
            attention_factor=float(key("rope.scaling.attn_factor")),
        )
    config = Phi3Config(
        vocab_size=len(weights["token_embd.weight"]),
        hidden_size=width,
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=key("attention.head_count_kv"),
        max_position_embeddings=key("context_length"),
        original_max_position_embeddings=original,
        rms_norm_eps=float(key("attention.layer_norm_rms_epsilon")),
        rope_parameters=rope,
        tie_word_embeddings="output.weight" not in weights,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return fill(Phi3ForCausalLM(config), weights, PHI3_NAMES)


def fill(model, weights, names):
    """Loads GGUF-named weights into a transformers model; a tensor too many or too few is an error."""
    state = {"model.embed_tokens.weight": weights.pop("token_embd.weight"), "model.norm.weight": weights.pop("output_norm.weight")}
    state["lm_head.weight"] = weights.pop("output.weight", state["model.embed_tokens.weight"])
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in names.items():
            state[f"model.layers.{layer}.{theirs}.weight"] = weights.pop(f"blk.{layer}.{ours}.weight")
    if weights:
        raise ValueError(f"tensors without a place in {type(model).__name__}: {sorted(weights)}")
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def load(path):
    """`(model, vocabulary)` of a GGUF, the model in f32 with transformers' plain attention."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    model = {"llama": build_llama, "phi3": build_phi3}[architecture](reader, weights_of(reader))
    model.set_attn_implementation("eager")
    return model, Vocabulary.read(reader)


@torch.inference_mode()
def logits_of(model, ids):
    """Logits of one sequence, computed in one go: f32 `[len(ids), vocabulary]`."""
    return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


@torch.inference_mode()
def greedy(model, ids, limit, stops):
    """Greedy continuation: the new ids (a stop token included), the top-two margin at each, and the first logits."""
    out, margins, first, cache, fresh = [], [], None, None, ids
    while len(out) < limit and not (out and out[-1] in stops):
        answer = model(torch.tensor([fresh]), past_key_values=cache, use_cache=True)
        cache, logits = answer.past_key_values, answer.logits[0, -1]
        if first is None:
            first = logits.numpy().copy()
        top = logits.topk(2)
        out.append(int(top.indices[0]))
        margins.append(float(top.values[0] - top.values[1]))
        fresh = out[-1:]
    return out, margins, first
