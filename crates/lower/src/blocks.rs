//! The blocks that architectures are made of, as ML Program ops over the frozen shard interface.
//!
//! Activations are `[1, channels, T, 1]`, so a projection is a 1x1 convolution. Inside attention they are `[1, heads,
//! head_dim, T]`, where rotary halves split on the third axis, and `[1, heads, T, head_dim]`, where products with the cache
//! are plain: slices along the last axis with a begin other than 0 overflow early before M4. Every op's rank is at most 4.
//! What changes with T is stated where it does; everything else is the same graph for `main` and `prefill`.

use anemone_bundle::contract::Activation;
use anemone_mil::build::{BuildError, FunctionBuilder, Operand};
use anemone_mil::ir::{Dtype, Function, Literal, TensorType, ValueId};

use crate::model::Model;
use crate::pool::{Pool, Weight};
use crate::weights::{Row, plain, rotary};

/// A function under construction.
pub struct Graph<'a> {
    f: FunctionBuilder,
    model: &'a Model,
    pool: &'a Pool,
    /// T: tokens a call takes.
    tokens: usize,
}

/// What every layer of a function shares.
pub struct Shared {
    /// `[1, 1, rope_dim / 2, T]`.
    cos: ValueId,
    /// `[1, 1, rope_dim / 2, T]`.
    sin: ValueId,
    /// `[1, 1, T, S]`: 0 where a token may look, -1e4 where not.
    attn_mask: ValueId,
    /// `[1, 1, S, T]`: one-hot columns, the cache row of each token.
    write_mask: ValueId,
    /// `[1, 1, S, 1]`: 1 for cache rows that stay, 0 for those written.
    keep: ValueId,
}

type Built<T> = Result<T, BuildError>;

impl<'a> Graph<'a> {
    /// An empty function of `tokens` tokens a call.
    pub fn new(name: &str, model: &'a Model, pool: &'a Pool, tokens: usize) -> Built<Self> {
        Ok(Self { f: FunctionBuilder::new(name, "CoreML8")?, model, pool, tokens })
    }

    /// The function, with its one output called `name`.
    pub fn finish(self, name: &str, value: ValueId) -> Built<Function> {
        self.f.finish(&[(name, value)])
    }

    /// The input `x[1, width, T, 1]`.
    pub fn x(&mut self) -> Built<ValueId> {
        let shape = [1, self.model.contract.width, self.tokens, 1];
        self.f.input("x", TensorType::new(Dtype::F16, &shape))
    }

    /// The inputs that a layer shard has besides `x`.
    pub fn shared(&mut self) -> Built<Shared> {
        let (t, s, half) = (self.tokens, self.model.contract.context, self.model.contract.rope.dim / 2);
        let mut input = |name: &str, shape: &[usize]| self.f.input(name, TensorType::new(Dtype::F16, shape));
        let rope_cos = input("rope_cos", &[t, half])?;
        let rope_sin = input("rope_sin", &[t, half])?;
        let attn_mask = input("attn_mask", &[1, 1, t, s])?;
        let write_mask = input("kv_write_mask", &[1, 1, s, t])?;
        let cos = self.rope_table("rope_cos", rope_cos)?;
        let sin = self.rope_table("rope_sin", rope_sin)?;
        let written = match t {
            1 => write_mask,
            _ => self.reduce("reduce_sum", "kv_rows_written", write_mask, 3)?,
        };
        let keep = self.binary("sub", "kv_rows_kept", Literal::f16(1.0), written)?;
        Ok(Shared { cos, sin, attn_mask, write_mask, keep })
    }

    /// `[T, half]` to `[1, 1, half, T]`.
    fn rope_table(&mut self, name: &str, table: ValueId) -> Built<ValueId> {
        let half = self.model.contract.rope.dim / 2;
        let columns = match self.tokens {
            1 => table,
            _ => {
                let perm = Literal::i32s(&[1, 0]);
                self.f.op("transpose", &format!("{name}_columns"), &[("x", table.into()), ("perm", perm.into())])?
            }
        };
        self.reshape(&format!("{name}_heads"), columns, &[1, 1, half, self.tokens])
    }

    /// `x * rsqrt(mean(x^2) + eps) * gamma` over the channels.
    ///
    /// In fp16 the plain form overflows where some |x| exceeds 255, and `eps` of 1e-5 vanishes if x is scaled down by a
    /// constant to prevent that. So x is divided by `m = max(max|x|, sqrt(eps))`, which cancels:
    /// `x/m * rsqrt(mean((x/m)^2) + (sqrt(eps)/m)^2)`. Then |x/m| <= 1, squares and their mean are at most 1, `sqrt(eps)/m`
    /// is at most 1 and matters only where it is far from underflow, and the argument of `rsqrt` is at least
    /// `1 / channels`, or 1 where m is `sqrt(eps)`: it needs no epsilon of its own.
    pub fn rms_norm(&mut self, name: &str, x: ValueId) -> Built<ValueId> {
        let n = |part: &str| format!("{}_{part}", plain_name(name));
        let root_eps = || Literal::f16(self.model.contract.norm.eps.sqrt());
        let (floor, eps) = (root_eps(), root_eps());
        let gamma = self.pool.vector(self.model, name, &[1, self.model.contract.width, 1, 1]);
        let gamma = self.f.constant(&n("gamma"), gamma);
        let magnitude = self.f.op("abs", &n("magnitude"), &[("x", x.into())])?;
        let peak = self.reduce("reduce_max", &n("peak"), magnitude, 1)?;
        let m = self.binary("maximum", &n("divisor"), peak, floor)?;
        let unit = self.binary("real_div", &n("unit"), x, m)?;
        let square = self.binary("mul", &n("square"), unit, unit)?;
        let mean = self.reduce("reduce_mean", &n("mean"), square, 1)?;
        let root = self.binary("real_div", &n("root_eps"), eps, m)?;
        let eps = self.binary("mul", &n("eps"), root, root)?;
        let sum = self.binary("add", &n("mean_eps"), mean, eps)?;
        let inverse = [("x", sum.into()), ("epsilon", Literal::f16(0.0).into())];
        let inverse = self.f.op("rsqrt", &n("inverse"), &inverse)?;
        let normal = self.binary("mul", &n("normal"), unit, inverse)?;
        self.binary("mul", &n("out"), normal, gamma)
    }

    /// A projection of `x[1, in, T, 1]` by the rows that `rows` lists of tensor `<name>.weight`, and its bias where the
    /// source has one.
    pub fn project(&mut self, name: &str, x: ValueId, rows: impl Fn() -> Vec<Row>) -> Built<ValueId> {
        let tensor = format!("{name}.weight");
        let weight_name = format!("{}_weight", plain_name(name));
        let weight = match self.pool.weight(self.model, &tensor, &rows) {
            Weight::Fp16(literal) => self.f.constant(&weight_name, literal),
            Weight::Int8 { data, scale } => {
                let inputs = [("data", data.into()), ("scale", scale.into())];
                self.f.op("constexpr_blockwise_shift_scale", &weight_name, &inputs)?
            }
        };
        let mut inputs: Vec<(&str, Operand)> = vec![("x", x.into()), ("weight", weight.into())];
        let bias = format!("{name}.bias");
        if self.model.source.find(&bias).is_some() {
            let bias = self.pool.bias(self.model, &bias, &rows);
            inputs.push(("bias", bias.into()));
        }
        self.f.op("conv", &plain_name(name), &inputs)
    }

    /// Attention of layer `layer` (state number `state` in this shard), from the normalised input to the projected
    /// output, both `[1, width, T, 1]`.
    pub fn attention(&mut self, layer: usize, state: usize, x: ValueId, shared: &Shared) -> Built<ValueId> {
        let c = &self.model.contract;
        let (t, s, hd) = (self.tokens, c.context, c.head_dim);
        let (heads, kv, group) = (c.heads, c.kv_heads, c.group());
        let n = |part: &str| format!("blk_{layer}_{part}");

        let (q, k, v) = self.queries_keys_values(layer, x)?;
        let q = self.rotate(&n("q"), q, heads, shared)?;
        let k = self.rotate(&n("k"), k, kv, shared)?;
        let q = self.swap_last(&n("q_rows"), q, heads, [hd, t])?;
        let k = self.swap_last(&n("k_rows"), k, kv, [hd, t])?;
        let v = self.reshape(&n("v_heads"), v, &[1, kv, hd, t])?;
        let v = self.swap_last(&n("v_rows"), v, kv, [hd, t])?;
        // Before the product, where magnitudes are smaller.
        let q = self.binary("mul", &n("q_scaled"), q, Literal::f16(1.0 / (hd as f32).sqrt()))?;

        let cache = TensorType::new(Dtype::F16, &[1, kv, s, hd]);
        let k = self.cached(&format!("k_cache_{state}"), &n("k"), k, cache.clone(), shared)?;
        let v = self.cached(&format!("v_cache_{state}"), &n("v"), v, cache, shared)?;

        let mut parts = Vec::with_capacity(kv);
        for g in 0..kv {
            let n = |part: &str| format!("blk_{layer}_kv{g}_{part}");
            let q = self.heads(&n("q"), q, heads, g * group, (g + 1) * group)?;
            let k = self.heads(&n("k"), k, kv, g, g + 1)?;
            let v = self.heads(&n("v"), v, kv, g, g + 1)?;
            let product = [("x", q.into()), ("y", k.into()), ("transpose_y", Literal::bool(true).into())];
            let scores = self.f.op("matmul", &n("scores"), &product)?;
            let masked = self.binary("add", &n("masked"), scores, shared.attn_mask)?;
            let weights = [("x", masked.into()), ("axis", Literal::i32(-1).into())];
            let weights = self.f.op("softmax", &n("weights"), &weights)?;
            parts.push(self.f.op("matmul", &n("mixed"), &[("x", weights.into()), ("y", v.into())])?);
        }
        let mixed = match parts[..] {
            [one] => one,
            _ => self.concat(&n("mixed"), parts, 1)?,
        };
        let columns = self.swap_last(&n("mixed_columns"), mixed, heads, [t, hd])?;
        let flat = self.reshape(&n("mixed_flat"), columns, &[1, heads * hd, t, 1])?;
        let rows = self.model.contract.width;
        self.project(&format!("blk.{layer}.attn_output"), flat, || plain(0..rows))
    }

    /// Queries, keys and values `[1, heads * head_dim, T, 1]` of a fused or split source. Their rows are half-split and carry
    /// the attention factor.
    fn queries_keys_values(&mut self, layer: usize, x: ValueId) -> Built<(ValueId, ValueId, ValueId)> {
        let c = &self.model.contract;
        let (q_rows, kv_rows) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let turning = |first: usize, heads: usize| {
            rotary(first, heads, c.head_dim, c.rope.dim, c.rope.pairing, c.rope.attention_factor)
        };
        if !self.model.structure.fused_qkv {
            let q = self.project(&format!("blk.{layer}.attn_q"), x, || turning(0, c.heads))?;
            let k = self.project(&format!("blk.{layer}.attn_k"), x, || turning(0, c.kv_heads))?;
            let v = self.project(&format!("blk.{layer}.attn_v"), x, || plain(0..kv_rows))?;
            return Ok((q, k, v));
        }
        let all = || {
            let mut rows = turning(0, c.heads);
            rows.extend(turning(q_rows, c.kv_heads));
            rows.extend(plain(q_rows + kv_rows..q_rows + 2 * kv_rows));
            rows
        };
        let fused = self.project(&format!("blk.{layer}.attn_qkv"), x, all)?;
        let n = |part: &str| format!("blk_{layer}_{part}");
        let total = q_rows + 2 * kv_rows;
        let q = self.slice(&n("q"), fused, 1, 0, q_rows)?;
        let k = self.slice(&n("k"), fused, 1, q_rows, q_rows + kv_rows)?;
        let v = self.slice(&n("v"), fused, 1, q_rows + kv_rows, total)?;
        Ok((q, k, v))
    }

    /// Rotates the first `rope.dim` elements of each head in pairs `(i, i + dim/2)`; the rest passes through. From
    /// `[1, heads * head_dim, T, 1]` to `[1, heads, head_dim, T]`.
    fn rotate(&mut self, name: &str, x: ValueId, heads: usize, shared: &Shared) -> Built<ValueId> {
        let (hd, rd, t) = (self.model.contract.head_dim, self.model.contract.rope.dim, self.tokens);
        let n = |part: &str| format!("{name}_{part}");
        let x = self.reshape(&n("heads"), x, &[1, heads, hd, t])?;
        let low = self.slice(&n("low"), x, 2, 0, rd / 2)?;
        let high = self.slice(&n("high"), x, 2, rd / 2, rd)?;
        let low_cos = self.binary("mul", &n("low_cos"), low, shared.cos)?;
        let high_sin = self.binary("mul", &n("high_sin"), high, shared.sin)?;
        let low_sin = self.binary("mul", &n("low_sin"), low, shared.sin)?;
        let high_cos = self.binary("mul", &n("high_cos"), high, shared.cos)?;
        let mut parts = vec![
            self.binary("sub", &n("low_turned"), low_cos, high_sin)?,
            self.binary("add", &n("high_turned"), low_sin, high_cos)?,
        ];
        if rd < hd {
            parts.push(self.slice(&n("pass"), x, 2, rd, hd)?);
        }
        self.concat(&n("turned"), parts, 2)
    }

    /// Writes `new[1, kv, T, head_dim]` into the rows of a cache that the write mask names, as the published masked form
    /// does, and reads the whole cache back: `[1, kv, S, head_dim]`.
    fn cached(&mut self, state: &str, name: &str, new: ValueId, ty: TensorType, shared: &Shared) -> Built<ValueId> {
        let n = |part: &str| format!("{name}_{part}");
        let handle = self.f.state(state, ty)?;
        let old = self.f.op("read_state", &n("cache"), &[("input", handle.into())])?;
        let kept = self.binary("mul", &n("cache_kept"), old, shared.keep)?;
        let placed = match self.tokens {
            1 => self.binary("mul", &n("placed"), new, shared.write_mask)?,
            // One-hot columns: each cache row is one new row times 1, or nothing.
            _ => self.f.op("matmul", &n("placed"), &[("x", shared.write_mask.into()), ("y", new.into())])?,
        };
        let updated = self.binary("add", &n("cache_updated"), kept, placed)?;
        self.f.write_state(&n("cache_write"), handle, updated)?;
        self.f.op("read_state", &n("cache_now"), &[("input", handle.into())])
    }

    /// `down(act(gate(x)) * up(x))`.
    pub fn gated(&mut self, layer: usize, x: ValueId) -> Built<ValueId> {
        let (ffn, width) = (self.model.contract.ffn, self.model.contract.width);
        let n = |part: &str| format!("blk_{layer}_{part}");
        let (gate, up) = if self.model.structure.fused_gate_up {
            let both = self.project(&format!("blk.{layer}.ffn_up"), x, || plain(0..2 * ffn))?;
            let gate = self.slice(&n("gate"), both, 1, 0, ffn)?;
            (gate, self.slice(&n("up"), both, 1, ffn, 2 * ffn)?)
        } else {
            let gate = self.project(&format!("blk.{layer}.ffn_gate"), x, || plain(0..ffn))?;
            (gate, self.project(&format!("blk.{layer}.ffn_up"), x, || plain(0..ffn))?)
        };
        let active = match self.model.contract.activation {
            Activation::Silu => self.f.op("silu", &n("active"), &[("x", gate.into())])?,
        };
        let product = self.binary("mul", &n("gated"), active, up)?;
        self.project(&format!("blk.{layer}.ffn_down"), product, || plain(0..width))
    }

    /// `x + attention(norm(x))`, then `x + gated(norm(x))`: the layer of every architecture here so far.
    pub fn pre_norm_layer(&mut self, layer: usize, state: usize, x: ValueId, shared: &Shared) -> Built<ValueId> {
        let n = |part: &str| format!("blk_{layer}_{part}");
        let normal = self.rms_norm(&format!("blk.{layer}.attn_norm.weight"), x)?;
        let attention = self.attention(layer, state, normal, shared)?;
        let x = self.binary("add", &n("attended"), x, attention)?;
        let normal = self.rms_norm(&format!("blk.{layer}.ffn_norm.weight"), x)?;
        let gated = self.gated(layer, normal)?;
        self.binary("add", &n("hidden"), x, gated)
    }

    fn binary(&mut self, kind: &str, name: &str, x: impl Into<Operand>, y: impl Into<Operand>) -> Built<ValueId> {
        self.f.op(kind, name, &[("x", x.into()), ("y", y.into())])
    }

    fn reduce(&mut self, kind: &str, name: &str, x: ValueId, axis: i32) -> Built<ValueId> {
        let axes = Literal::i32s(&[axis]);
        self.f.op(kind, name, &[("x", x.into()), ("axes", axes.into()), ("keep_dims", Literal::bool(true).into())])
    }

    fn reshape(&mut self, name: &str, x: ValueId, shape: &[usize]) -> Built<ValueId> {
        let shape: Vec<i32> = shape.iter().map(|&n| n as i32).collect();
        self.f.op("reshape", name, &[("x", x.into()), ("shape", Literal::i32s(&shape).into())])
    }

    /// `[1, heads, a, b]` to `[1, heads, b, a]`: the same bytes, and so a reshape, where one of the two is 1.
    fn swap_last(&mut self, name: &str, x: ValueId, heads: usize, [a, b]: [usize; 2]) -> Built<ValueId> {
        if a == 1 || b == 1 {
            return self.reshape(name, x, &[1, heads, b, a]);
        }
        let perm = Literal::i32s(&[0, 1, 3, 2]);
        self.f.op("transpose", name, &[("x", x.into()), ("perm", perm.into())])
    }

    fn concat(&mut self, name: &str, parts: Vec<ValueId>, axis: i32) -> Built<ValueId> {
        self.f.op("concat", name, &[("values", Operand::Many(parts)), ("axis", Literal::i32(axis).into())])
    }

    /// Heads `begin..end` of `x[1, total, rows, head_dim]`; all of them are `x` itself.
    fn heads(&mut self, name: &str, x: ValueId, total: usize, begin: usize, end: usize) -> Built<ValueId> {
        if begin == 0 && end == total { Ok(x) } else { self.slice(name, x, 1, begin, end) }
    }

    /// `begin..end` along `axis` of a rank-4 value, everything along the other axes.
    fn slice(&mut self, name: &str, x: ValueId, axis: usize, begin: usize, end: usize) -> Built<ValueId> {
        let (mut begins, mut ends, mut all) = ([0; 4], [0; 4], [true; 4]);
        (begins[axis], ends[axis], all[axis]) = (begin as i32, end as i32, false);
        let inputs = [
            ("x", x.into()),
            ("begin", Literal::i32s(&begins).into()),
            ("end", Literal::i32s(&ends).into()),
            ("end_mask", Literal::bools(&all).into()),
        ];
        self.f.op("slice_by_index", name, &inputs)
    }
}

/// A tensor's name as an identifier.
fn plain_name(tensor: &str) -> String {
    tensor.trim_end_matches(".weight").replace('.', "_")
}
