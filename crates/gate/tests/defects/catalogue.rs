//! The defects: what is spoiled, which gate says so, and the words in which it names the place.

use anemone_bundle::contract::{FactorSet, Pairing, Scaling, WeightMode};
use anemone_exec::Tensor;
use anemone_mil::ir::Literal;

use crate::case::{Base, Case, tensor};
use crate::meddler::{Call, Meddler, edit};

/// One defect.
pub struct Defect {
    /// Where it is put: `contract`, `manifest`, `lowering`, `weights`, `package`, `runtime`, `source`.
    pub kind: &'static str,
    /// What is wrong.
    pub name: &'static str,
    pub base: Base,
    pub inject: fn(&mut Case),
    /// The first gate that fails.
    pub gate: &'static str,
    /// What its part and message have to say.
    pub words: &'static [&'static str],
}

use Base::{Grouped, Longrope, Miniature, MiniatureInt8};

macro_rules! defects {
    ($($kind:literal: $name:literal, $base:ident, $gate:literal [$($word:literal),*], $inject:expr;)*) => {
        pub const DEFECTS: &[Defect] = &[$(Defect {
            kind: $kind, name: $name, base: $base, inject: $inject, gate: $gate, words: &[$($word),*],
        }),*];
    };
}

const FIRST: &str = "layers/00-02.mlpackage";
const WEIGHTS: &str = "layers/00-02.mlpackage/Data/com.apple.CoreML/weights/weight.bin";

/// Wraps the runtime.
fn meddle(case: &mut Case, before: fn(&mut Call<'_>)) {
    case.runtime = Box::new(Meddler { before, ..Meddler::NONE });
}

fn meddle_after(case: &mut Case, after: fn(&Call<'_>, &mut Vec<Tensor>)) {
    case.runtime = Box::new(Meddler { after, ..Meddler::NONE });
}

/// Exchanges rows or other equal parts of a tensor.
fn swap_parts(values: &mut [f32], a: usize, b: usize, len: usize) {
    for i in 0..len {
        values.swap(a + i, b + i);
    }
}

fn swap_tensors(writer: &mut anemone_gguf::writer::Writer<'_>, gguf: &anemone_gguf::Gguf, a: &str, b: &str) {
    let (x, y) = (gguf.tensor(a).unwrap().dequantize(), gguf.tensor(b).unwrap().dequantize());
    tensor(writer, gguf, a, |v, _| *v = y);
    tensor(writer, gguf, b, |v, _| *v = x);
}

defects! {
    // The contract, wrong in the same way everywhere: every part of the bundle agrees.
    "contract": "the exponent of the frequencies runs over the head, not over the rotary width", Miniature,
    "contract" ["source", "rotary frequency 1 is"], |case| case.lowered(|c| {
        let factor = |i: usize| 10000f32.powf(2.0 * i as f32 / 128.0 - 2.0 * i as f32 / 96.0);
        c.rope.factors = (0..48).map(factor).collect();
    });
    "contract": "all 128 dims rotate", Miniature,
    "contract" ["source", "rope.dim is 128 in the contract and 96 in the source"], |case| case.lowered(|c| {
        (c.rope.dim, c.rope.factors) = (128, vec![1.0; 64]);
    });
    "contract": "the rotary base of another model", Miniature,
    "contract" ["source", "rotary frequency 1 is"], |case| case.lowered(|c| c.rope.base = 500_000.0);
    "contract": "pairs taken for interleaved", Miniature,
    "contract" ["source", "rope.pairing is Interleaved"], |case| case.lowered(|c| c.rope.pairing = Pairing::Interleaved);
    "contract": "pairs taken for half-split", Grouped,
    "contract" ["source", "rope.pairing is HalfSplit"], |case| case.lowered(|c| c.rope.pairing = Pairing::HalfSplit);
    "contract": "the eps of another model", Miniature,
    "contract" ["source", "norm.eps is"], |case| case.lowered(|c| c.norm.eps = 1e-6);
    "contract": "attention factor lost", Longrope,
    "contract" ["source", "rope.attention_factor is 1 in"], |case| case.lowered(|c| c.rope.attention_factor = 1.0);
    "contract": "long factors where the short ones apply", Longrope,
    "contract" ["source", "rotary frequency"], |case| {
        let long = case.source.tensor("rope_factors_long.weight").unwrap().dequantize();
        case.lowered(move |c| {
            c.rope.factors = long.clone();
            c.rope.scaling = Scaling::LongRope { set: FactorSet::Long, original_context: 64 };
        });
    };
    "contract": "factors ignored", Longrope,
    "contract" ["source", "rotary frequency"], |case| case.lowered(|c| c.rope.factors = vec![1.0; 48]);
    "contract": "another number of kv heads", Miniature,
    "contract" ["source", "kv_heads is 2 in the contract and 1 in the source"], |case| case.contract(|c| c.kv_heads = 2);
    "contract": "embedding rows scaled", Miniature,
    "contract" ["source", "embedding_scale is 16 in"], |case| case.lowered(|c| c.embedding_scale = 16.0);
    "contract": "head taken for tied", Grouped,
    "contract" ["source", "tied is true in"], |case| case.contract(|c| c.tied = true);
    "contract": "the source's end-of-sequence token does not stop", Miniature,
    "contract" ["source", "tokens.stop"], |case| case.contract(|c| { let eos = c.tokens.eos; c.tokens.stop.remove(&eos); });

    // The manifest and the set of files.
    "manifest": "contract edited after the build", Miniature,
    "manifest" ["contract_hash"], |case| case.manifest(|m| m["contract"]["rope"]["dim"] = 128.into());
    "manifest": "layer shards in the wrong order", Miniature,
    "manifest" ["layers shard 2-4 does not follow 0"], |case| case.manifest(|m| m["layers"].as_array_mut().unwrap().reverse());
    "manifest": "a head slice missing", Miniature,
    "manifest" ["head end at 512 of 1024"], |case| case.manifest(|m| drop(m["head"].as_array_mut().unwrap().pop()));
    "manifest": "a layer covered twice", Miniature,
    "manifest" ["layers shard 1-4 does not follow 2"], |case| case.manifest(|m| m["layers"][1]["start"] = 1.into());
    "manifest": "head slices exchanged", Miniature,
    "contract" ["head/1.mlpackage", "`anemone.role` is `head 512-1024`"], |case| case.manifest(|m| {
        (m["head"][0]["path"], m["head"][1]["path"]) = ("head/1.mlpackage".into(), "head/0.mlpackage".into());
    });
    "manifest": "layer shards exchanged", Miniature,
    "contract" ["layers/02-04.mlpackage", "`anemone.role` is `layers 2-4`"], |case| case.manifest(|m| {
        (m["layers"][0]["path"], m["layers"][1]["path"]) = ("layers/02-04.mlpackage".into(), FIRST.into());
    });
    "manifest": "a stale shard of another contract", Miniature,
    "contract" [r"layers/00-02.mlpackage", "anemone.contract_hash"], |case| {
        let other = Case::new(MiniatureInt8);
        std::fs::remove_dir_all(case.folder.join(FIRST)).unwrap();
        std::fs::rename(other.folder.join(FIRST), case.folder.join(FIRST)).unwrap();
        case.rehash();
    };
    "manifest": "the bundle of another source", Miniature,
    "contract" ["source", "BLAKE3"], |case| case.manifest(|m| m["source"]["blake3"] = "0".repeat(64).into());
    "package": "a bit flipped in weight.bin", Miniature,
    "contract" ["files", "weight.bin", "BLAKE3"], |case| case.bytes(WEIGHTS, false, |b| { let n = b.len() / 2; b[n] ^= 0x10; });
    "package": "a bit flipped in weight.bin before it was hashed", Miniature,
    "weights" [r"layers/00-02.mlpackage", "`blk.", " 1 of "], |case| case.bytes(WEIGHTS, true, |b| { let n = b.len() / 2 + 1; b[n] ^= 0x10; });
    "package": "a bit flipped in int8 data before it was hashed", MiniatureInt8,
    "weights" [r"layers/00-02.mlpackage", "`blk.", " 1 of "], |case| case.bytes(WEIGHTS, true, |b| { let n = b.len() / 2; b[n] ^= 0x20; });
    "package": "an output of another width", Miniature,
    "contract" [r"layers/00-02.mlpackage", "`main`", "rope_cos"], |case| {
        let right = case.right_manifest();
        case.lowered(|c| (c.rope.dim, c.rope.factors) = (128, vec![1.0; 64]));
        case.as_if(&right);
    };
    "package": "weights in another mode than the contract says", Miniature,
    "contract" [r"layers/00-02.mlpackage", "int8-channel means"], |case| case.contract(|c| c.weights = WeightMode::Int8Channel);

    // Weights: each part is well formed, and holds the wrong numbers.
    "weights": "embedding table off by a row", Miniature,
    "weights" ["embedding.f16", "token "], |case| case.bytes("embedding.f16", true, |b| b.rotate_left(512));
    "weights": "a square projection transposed", Miniature,
    "weights" [r"layers/00-02.mlpackage", "`blk.1.attn_output.weight`"], |case| case.weights(|w, g| {
        tensor(w, g, "blk.1.attn_output.weight", |v, shape| {
            let n = shape[0];
            *v = (0..n * n).map(|i| v[i % n * n + i / n]).collect();
        });
    });
    "weights": "two layers' projections exchanged", Miniature,
    "weights" [r"layers/00-02.mlpackage", "ffn_down.weight`"], |case| case.weights(|w, g| {
        swap_tensors(w, g, "blk.0.ffn_down.weight", "blk.1.ffn_down.weight");
    });
    "weights": "gate and up rows in the wrong order", Miniature,
    "weights" [r"layers/00-02.mlpackage", "`blk.0.ffn_"], |case| case.weights(|w, g| {
        tensor(w, g, "blk.0.ffn_up.weight", |v, shape| { let n = shape[0] / 2 * shape[1]; swap_parts(v, 0, n, n) });
    });
    "weights": "k and v rows in the wrong order", Miniature,
    "weights" [r"layers/00-02.mlpackage", "`blk.1.attn_"], |case| case.weights(|w, g| {
        tensor(w, g, "blk.1.attn_qkv.weight", |v, shape| { let n = 128 * shape[1]; swap_parts(v, 2 * n, 3 * n, n) });
    });
    "weights": "q rows permuted as if pairs were interleaved", Miniature,
    "weights" [r"layers/00-02.mlpackage", "attn_q.weight`"], |case| case.weights(|w, g| {
        tensor(w, g, "blk.0.attn_qkv.weight", |v, shape| {
            let old = v.clone();
            let columns = shape[1];
            for j in 0..96 {
                let from = 2 * (j % 48) + j / 48;
                v[j * columns..(j + 1) * columns].copy_from_slice(&old[from * columns..(from + 1) * columns]);
            }
        });
    });
    "weights": "q rows left interleaved", Grouped,
    "weights" [r"layers/00-02.mlpackage", "`blk.1.attn_q.weight` row "], |case| case.weights(|w, g| {
        // What undoes the permutation of the build.
        tensor(w, g, "blk.1.attn_q.weight", |v, shape| {
            let old = v.clone();
            let columns = shape[1];
            for row in 0..shape[0] {
                let (head, j) = (row / 32, row % 32);
                let from = head * 32 + j / 2 + 16 * (j % 2);
                v[row * columns..(row + 1) * columns].copy_from_slice(&old[from * columns..(from + 1) * columns]);
            }
        });
    });
    "weights": "biases of q not permuted with their rows", Grouped,
    "weights" [r"layers/00-02.mlpackage", "`blk.0.attn_q.bias`"], |case| case.weights(|w, g| {
        tensor(w, g, "blk.0.attn_q.bias", |v, _| {
            let old = v.clone();
            for row in 0..old.len() {
                v[row] = old[row / 32 * 32 + row % 32 / 2 + 16 * (row % 2)];
            }
        });
    });
    "weights": "attention factor on pass-through dims too", Longrope,
    "weights" [r"layers/00-02.mlpackage", "attn_q.weight`"], |case| case.weights(|w, g| {
        let factor = g.metadata().f32("phi3.rope.scaling.attn_factor").unwrap();
        tensor(w, g, "blk.0.attn_qkv.weight", |v, shape| {
            let columns = shape[1];
            for row in (0..256).filter(|row| row % 128 >= 96) {
                v[row * columns..(row + 1) * columns].iter_mut().for_each(|v| *v *= factor);
            }
        });
    });
    "weights": "attention factor not folded in", Longrope,
    "weights" [r"layers/00-02.mlpackage", "`blk."], |case| case.weights(|w, _| {
        w.key("phi3.rope.scaling.attn_factor", 1.0f32);
    });
    "weights": "the norm of the other block", Miniature,
    "weights" [r"layers/00-02.mlpackage", "norm.weight`"], |case| case.weights(|w, g| {
        swap_tensors(w, g, "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight");
    });
    "weights": "norm weights one too large", Miniature,
    "weights" [r"layers/00-02.mlpackage", "norm.weight`"], |case| case.weights(|w, g| {
        tensor(w, g, "blk.0.ffn_norm.weight", |v, _| v.iter_mut().for_each(|v| *v += 1.0));
    });
    "weights": "head off by a row", Grouped,
    "weights" ["head/0.mlpackage", "`output.weight` row "], |case| case.weights(|w, g| {
        tensor(w, g, "output.weight", |v, shape| v.rotate_left(shape[1]));
    });
    "weights": "the scale of another tensor", MiniatureInt8,
    "weights" [r"layers/00-02.mlpackage", "ffn_down.weight`"], |case| case.program(FIRST, |p| {
        for f in &mut p.functions {
            let at = |name: &str| f.ops.iter().position(|o| o.name == name).unwrap();
            let (a, b) = (at("blk_0_ffn_down_weight"), at("blk_1_ffn_down_weight"));
            let (x, y) = (f.ops[a].inputs["scale"].clone(), f.ops[b].inputs["scale"].clone());
            f.ops[a].inputs.insert("scale".into(), y);
            f.ops[b].inputs.insert("scale".into(), x);
        }
    });

    // Lowering: the weights are right, and the program is wrong.
    "lowering": "eps lost", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "the program is wrong", "_norm_out`"], |case| case.functions(|e| {
        for norm in ["blk_0_attn_norm", "blk_0_ffn_norm", "blk_1_attn_norm", "blk_1_ffn_norm"] {
            e.constant(&format!("{norm}_root_eps"), "x", Literal::f16(0.0));
        }
    });
    "lowering": "eps lost, beside int8 noise of the same size", MiniatureInt8,
    "range-golden" [r"layers/00-02.mlpackage", "the program is wrong", "_norm_out`"], |case| case.functions(|e| {
        for norm in ["blk_0_attn_norm", "blk_0_ffn_norm", "blk_1_attn_norm", "blk_1_ffn_norm"] {
            e.constant(&format!("{norm}_root_eps"), "x", Literal::f16(0.0));
        }
    });
    "lowering": "eps a hundredth of what it is", MiniatureInt8,
    "range-golden" [r"layers/00-02.mlpackage", "the program is wrong", "_norm_out`"], |case| case.functions(|e| {
        for norm in ["blk_0_attn_norm", "blk_0_ffn_norm", "blk_1_attn_norm", "blk_1_ffn_norm"] {
            e.constant(&format!("{norm}_root_eps"), "x", Literal::f16(1e-7f32.sqrt()));
        }
    });
    "lowering": "the last 96 dims rotate instead of the first", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_q_turned` (concat)"], |case| case.functions(|e| {
        e.slice("blk_0_q_low", 2, 32, 80);
        e.slice("blk_0_q_high", 2, 80, 128);
        e.slice("blk_0_q_pass", 2, 0, 32);
    });
    "lowering": "pairs i, i+64 over 48 pairs", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_k_turned`"], |case| case.functions(|e| {
        e.slice("blk_0_k_high", 2, 64, 112);
    });
    "lowering": "the rotation turns the other way", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_q_turned`"], |case| case.functions(|e| {
        e.kind("blk_1_q_low_turned", "add");
        e.kind("blk_1_q_high_turned", "sub");
    });
    "lowering": "cosine and sine exchanged", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_k_turned`"], |case| case.functions(|e| {
        e.swap(("blk_1_k_low_cos", "blk_1_k_low_sin"), &["y"]);
    });
    "lowering": "keys not rotated", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_k_rows`"], |case| case.functions(|e| {
        e.bind("blk_0_k_rows", "x", "blk_0_k_heads");
    });
    "lowering": "k and v slices exchanged", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_k` (slice_by_index)"], |case| case.functions(|e| {
        e.swap(("blk_0_k", "blk_0_v"), &["begin", "end"]);
    });
    "lowering": "queries start a row late", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_q` (slice_by_index)"], |case| case.functions(|e| {
        e.slice("blk_1_q", 1, 1, 257);
    });
    "lowering": "gate and up exchanged", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_gate` (slice_by_index)"], |case| case.functions(|e| {
        e.swap(("blk_0_gate", "blk_0_up"), &["begin", "end"]);
    });
    "lowering": "the activation is another", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_gated`"], |case| case.functions(|e| {
        e.kind("blk_1_active", "sigmoid");
    });
    "lowering": "the scale of the scores missing", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_q_scaled` (mul)"], |case| case.functions(|e| {
        e.constant("blk_0_q_scaled", "y", Literal::f16(1.0));
    });
    "lowering": "scores scaled by head_dim, not by its root", Grouped,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_q_scaled` (mul)"], |case| case.functions(|e| {
        e.constant("blk_1_q_scaled", "y", Literal::f16(1.0 / 32.0));
    });
    "lowering": "kv heads exchanged between groups of queries", Grouped,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_kv0_scores` (matmul)"], |case| case.functions(|e| {
        e.swap(("blk_0_kv0_k", "blk_0_kv1_k"), &["begin", "end"]);
    });
    "lowering": "queries grouped round robin over kv heads", Grouped,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_kv0_scores` (matmul)"], |case| case.functions(|e| {
        // Heads 0 and 1 share the first kv head; here 1 and 2 do.
        e.slice("blk_1_kv0_q", 1, 1, 3);
    });
    "lowering": "values of the wrong kv head", Grouped,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_kv1_mixed` (matmul)"], |case| case.functions(|e| {
        e.slice("blk_1_kv1_v", 1, 0, 1);
    });
    "lowering": "groups concatenated in the wrong order", Grouped,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_mixed` (concat)"], |case| case.functions(|e| {
        let at = e.f.ops.iter().position(|o| o.name == "blk_0_mixed").unwrap();
        e.f.ops[at].inputs.get_mut("values").unwrap().reverse();
    });
    "lowering": "the mask dropped", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_kv0_weights` (softmax)"], |case| case.functions(|e| {
        e.bind("blk_1_kv0_weights", "x", "blk_1_kv0_scores");
    });
    "lowering": "softmax over heads, not over positions", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_kv0_weights` (softmax)"], |case| case.functions(|e| {
        e.constant("blk_0_kv0_weights", "axis", Literal::i32(1));
    });
    "lowering": "the residual lost", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_attended` (add)"], |case| case.functions(|e| {
        e.bind("blk_1_attended", "x", "blk_1_attn_output");
    });
    "lowering": "the second norm reads the layer's input", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_ffn_norm_out`"], |case| case.functions(|e| {
        for op in ["blk_1_ffn_norm_magnitude", "blk_1_ffn_norm_unit"] {
            e.bind(op, "x", "blk_0_hidden");
        }
    });
    "lowering": "T > 1 interleaves heads and tokens", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_mixed_flat` (reshape)", "T = 16"], |case| {
        case.function(Some("prefill"), |e| e.bind("blk_0_mixed_flat", "x", "blk_0_kv0_mixed"));
    };
    "lowering": "T > 1 writes each token into its neighbour's row", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_v_cache_now`", "T = 16"], |case| {
        case.function(Some("prefill"), |e| e.bind("blk_0_v_placed", "y", "blk_0_k_rows"));
    };
    "lowering": "rows that are written twice are added up", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_k_cache_now`"], |case| case.functions(|e| {
        e.bind("blk_0_k_cache_updated", "x", "blk_0_k_cache");
    });
    "lowering": "keys written into the values' cache", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_"], |case| case.functions(|e| {
        e.swap(("blk_0_k_cache_write", "blk_0_v_cache_write"), &["input"]);
    });
    "lowering": "layers share a cache", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_k_cache_now`"], |case| case.functions(|e| {
        e.bind("blk_1_k_cache_now", "input", "k_cache_0");
    });
    "lowering": "the final norm missing", Miniature,
    "range-golden" ["head/1.mlpackage", "the program is wrong"], |case| case.program("head/1.mlpackage", |p| {
        for f in &mut p.functions {
            let mut e = crate::case::Editor { f };
            e.bind("token_embd", "x", "x");
        }
    });
    "lowering": "T > 1 with a bias of its own", Grouped,
    "range-golden" [r"layers/00-02.mlpackage", "layer 1, op `blk_1_attn_v` (conv)", "T = 16"], |case| {
        case.function(Some("prefill"), |e| e.constant("blk_1_attn_v", "bias", Literal::f16s(&[64], &[0.25; 64])));
    };

    // What a host gives and a device does.
    "runtime": "the mask hides a token from itself", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_kv0_weights`"], |case| meddle(case, |call| {
        call.input("attn_mask", |v, shape| for row in v.chunks_exact_mut(shape[3]) {
            if let Some(last) = row.iter().rposition(|&m| m == 0.0).filter(|&p| p > 0) { row[last] = -1e4; }
        });
    });
    "runtime": "the mask shows the next position", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_kv0_weights`"], |case| meddle(case, |call| {
        call.input("attn_mask", |v, shape| for row in v.chunks_exact_mut(shape[3]) {
            if let Some(next) = row.iter().position(|&m| m != 0.0) { row[next] = 0.0; }
        });
    });
    "runtime": "the cache position is off by one", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_k_cache_now`"], |case| meddle(case, |call| {
        call.input("kv_write_mask", |v, shape| v.rotate_right(shape[3]));
    });
    "runtime": "every token of a block rotates as its first", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_q_turned`", "T = 16"], |case| meddle(case, |call| {
        for table in ["rope_cos", "rope_sin"] {
            call.input(table, |v, shape| for i in shape[1]..v.len() { v[i] = v[i % shape[1]]; });
        }
    });
    "runtime": "tables made for the whole head", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_q_turned`"], |case| meddle(case, |call| {
        let position = call.position().unwrap_or_default();
        for (table, f) in [("rope_cos", f32::cos as fn(f32) -> f32), ("rope_sin", f32::sin)] {
            call.input(table, |v, shape| for (k, v) in v.iter_mut().enumerate() {
                let (t, i) = (k / shape[1], k % shape[1]);
                *v = f((position + t) as f32 * 10000f32.powf(-2.0 * i as f32 / 128.0));
            });
        }
    });
    "runtime": "the sine's sign is lost", Longrope,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_q_turned`"], |case| meddle(case, |call| {
        call.input("rope_sin", |v, _| v.iter_mut().for_each(|v| *v = v.abs()));
    });
    "runtime": "caches forgotten between calls", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "layer 0, op `blk_0_k_cache_now`"], |case| {
        case.runtime = Box::new(Meddler { forgets: true, ..Meddler::NONE });
    };
    "runtime": "a NaN at a late position", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "from position 40 on"], |case| meddle_after(case, |call, out| {
        if call.position() == Some(40) || call.position() == Some(33) {
            let row = 40 - call.position().unwrap_or(40);
            edit(&mut out[0], |v, shape| v[row.min(shape[2] - 1)] = f32::NAN);
        }
    });
    "runtime": "results kept in 8 bits", Miniature,
    "range-golden" [r"layers/00-02.mlpackage", "the program is wrong from position 0 on"], |case| meddle_after(case, |_, out| {
        edit(&mut out[0], |v, _| v.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0xffff_0000)));
    });
    "runtime": "logits of a slice reversed", Miniature,
    "range-golden" ["head/0.mlpackage", "the program is wrong"], |case| meddle_after(case, |call, out| {
        if call.signature.output("logits").is_some() && out[0].to_f32().len() % 2 == 0 {
            edit(&mut out[0], |v, _| v.reverse());
        }
    });

    // The source itself: bundle and reference agree on something wrong.
    "source": "48 factors and a rotary width of 128", Longrope,
    "build" ["rope_factors_", "48"], |case| case.other_source(|w, _| { w.key("phi3.rope.dimension_count", 128u32); });
    "source": "more kv heads than the projection has rows for", Miniature,
    "build" ["attn_qkv.weight"], |case| case.other_source(|w, _| { w.key("phi3.attention.head_count_kv", 2u32); });
    "source": "all 128 dims rotate, and nothing contradicts it", Miniature,
    "stack-golden" ["prompt 0", "the source itself does not give the stated answer"], |case| {
        case.other_source(|w, _| { w.key("phi3.rope.dimension_count", 128u32); });
    };
    "source": "gate and up rows in the wrong order", Miniature,
    "stack-golden" ["prompt 0", "the source itself does not give the stated answer"], |case| case.other_source(|w, g| {
        for n in 0..4 {
            tensor(w, g, &format!("blk.{n}.ffn_up.weight"), |v, shape| { let n = shape[0] / 2 * shape[1]; swap_parts(v, 0, n, n) });
        }
    });
}
