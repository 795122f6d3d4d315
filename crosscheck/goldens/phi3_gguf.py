"""Writes a transformers `Phi3ForCausalLM` as the GGUF that llama.cpp's converter would: same keys, names and types."""

import math

import gguf
import numpy as np

from gguf_models import PHI3_NAMES

FILE_TYPES = {
    "F16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "Q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def attention_factor(context, original):
    """What longrope multiplies cosines and sines by; arXiv 2402.13753, as Phi-3's own code applies it."""
    return math.sqrt(1 + math.log(context / original) / math.log(original)) if context > original else 1.0


def tensors_of(model):
    """`(name, f32 array)` in the order of the converter."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    if not model.config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in PHI3_NAMES.items():
            yield f"blk.{layer}.{ours}.weight", state[f"model.layers.{layer}.{theirs}.weight"]
    rope = model.config.rope_parameters
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)


def write(path, model, vocabulary, kind, name):
    """Writes `model` to `path`: matrices as `kind` (a key of FILE_TYPES), vectors as F32."""
    config, rope = model.config, model.config.rope_parameters
    quantisation, file_type = FILE_TYPES[kind]
    context, original = config.max_position_embeddings, config.original_max_position_embeddings
    head = config.hidden_size // config.num_attention_heads

    out = gguf.GGUFWriter(path, "phi3")
    out.add_type("model")
    out.add_name(name)
    out.add_context_length(context)
    out.add_rope_scaling_orig_ctx_len(original)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_dimension_count(int(head * rope["partial_rotary_factor"]))
    out.add_rope_freq_base(rope["rope_theta"])
    out.add_file_type(file_type)
    out.add_sliding_window(0)
    out.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "longrope":
        out.add_rope_scaling_attn_factors(attention_factor(context, original))

    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(vocabulary.pre)
    out.add_token_list(vocabulary.tokens)
    out.add_token_types(vocabulary.types)
    out.add_token_merges(vocabulary.merges)
    out.add_bos_token_id(vocabulary.bos)
    out.add_eos_token_id(vocabulary.eos)
    out.add_unk_token_id(vocabulary.bos)
    out.add_pad_token_id(vocabulary.bos)
    if vocabulary.eot is not None:
        out.add_eot_token_id(vocabulary.eot)
    out.add_add_bos_token(False)
    out.add_chat_template(vocabulary.template)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)

    for tensor, values in tensors_of(model):
        values = np.ascontiguousarray(values, np.float32)
        if values.ndim == 1:
            out.add_tensor(tensor, values)
        elif kind == "F16":
            out.add_tensor(tensor, values.astype(np.float16))
        else:
            out.add_tensor(tensor, gguf.quants.quantize(values, quantisation), raw_dtype=quantisation)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
