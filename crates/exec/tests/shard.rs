//! A stateful shard, run in blocks of any size, on any number of threads, gives every token the same bits.

mod common;

use anemone_exec::{Model, Numerics, PortableModel, Tensor};
use anemone_mil::FunctionBuilder;
use anemone_mil::ir::{Dtype, Function, Literal, TensorType, ValueId};
use anemone_mil::testing::Rng;
use common::{model, program};
use proptest::prelude::*;

/// That many numbers in -scale..scale.
fn floats(rng: &mut Rng, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|_| ((rng.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale).collect()
}

/// The dimensions of a small stateful shard.
#[derive(Clone, Copy, Debug)]
struct Dims {
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    context: usize,
}

/// A shard of transformer layers in the masked form, for `tokens` tokens a call; equal for every `tokens` but for shapes.
fn shard(name: &str, dims: Dims, tokens: usize) -> Function {
    let Dims { layers, width: d, heads, kv_heads, head_dim, ffn, context: s } = dims;
    let t = tokens;
    let f16 = |shape: &[usize]| TensorType::new(Dtype::F16, shape);
    let mut r = Rng::new(7);
    let mut b = FunctionBuilder::new(name, "CoreML8").unwrap();
    let x = b.input("x", f16(&[1, d, t, 1])).unwrap();
    let cos = b.input("rope_cos", f16(&[t, head_dim / 2])).unwrap();
    let sin = b.input("rope_sin", f16(&[t, head_dim / 2])).unwrap();
    let mask = b.input("attn_mask", f16(&[1, 1, t, s])).unwrap();
    let write = b.input("kv_write_mask", f16(&[1, 1, s, t])).unwrap();
    let states: Vec<[ValueId; 2]> = (0..layers)
        .map(|i| ["k", "v"].map(|c| b.state(&format!("{c}_cache_{i}"), f16(&[1, kv_heads, s, head_dim])).unwrap()))
        .collect();
    let ints = |v: &[i32]| Literal::i32s(v);
    let weight =
        |r: &mut Rng, o: usize, i: usize| Literal::f16s(&[o, i, 1, 1], &floats(r, o * i, 1.7 / (i as f32).sqrt()));
    macro_rules! op {
        ($kind:literal, $name:expr, $($param:ident = $value:expr),*) => {
            b.op($kind, &$name, &[$((stringify!($param), $value.into())),*]).unwrap()
        };
    }
    let mut hidden = x;
    // One column a written row: rows that no token writes keep what they had.
    let written = op!("reduce_sum", "written", x = write, axes = ints(&[3]), keep_dims = Literal::bool(true));
    let kept = op!("sub", "kept", x = Literal::f16(1.0), y = written);
    let cos = op!("expand_dims", "cos", x = cos, axes = ints(&[0, 1]));
    let sin = op!("expand_dims", "sin", x = sin, axes = ints(&[0, 1]));
    for (i, caches) in states.iter().enumerate() {
        macro_rules! norm {
            ($name:expr, $x:expr, $gamma:expr) => {{
                let name: String = $name;
                let scaled = op!("mul", format!("{name}_scaled"), x = $x, y = Literal::f16(1.0 / 16.0));
                let square = op!("pow", format!("{name}_square"), x = scaled, y = Literal::f16(2.0));
                let mean = op!(
                    "reduce_mean",
                    format!("{name}_mean"),
                    x = square,
                    axes = ints(&[1]),
                    keep_dims = Literal::bool(true)
                );
                let safe = op!("add", format!("{name}_safe"), x = mean, y = Literal::f16(1e-5));
                let scale = op!("rsqrt", format!("{name}_rsqrt"), x = safe, epsilon = Literal::f16(1e-7));
                let normed = op!("mul", format!("{name}_normed"), x = scaled, y = scale);
                op!("mul", name, x = normed, y = $gamma)
            }};
        }
        let gamma = Literal::f16s(&[d, 1, 1], &floats(&mut r, d, 1.0));
        let normed = norm!(format!("norm_{i}"), hidden, gamma);
        let rows = (heads + 2 * kv_heads) * head_dim;
        let qkv = op!("conv", format!("qkv_{i}"), x = normed, weight = weight(&mut r, rows, d));
        // [1, rows, t, 1] -> [1, heads + 2 kv, t, head_dim]
        let split = op!(
            "reshape",
            format!("split_{i}"),
            x = qkv,
            shape = ints(&[1, (heads + 2 * kv_heads) as i32, head_dim as i32, t as i32])
        );
        let byhead = op!("transpose", format!("byhead_{i}"), x = split, perm = ints(&[0, 1, 3, 2]));
        let parts = b
            .ops_multi(
                "split",
                &format!("parts_{i}"),
                &[
                    ("x", byhead.into()),
                    ("split_sizes", ints(&[heads as i32, kv_heads as i32, kv_heads as i32]).into()),
                    ("axis", Literal::i32(1).into()),
                ],
            )
            .unwrap();
        let mut rotated = Vec::new();
        for (j, &part) in parts[..2].iter().enumerate() {
            let name = |what: &str| format!("{what}_{i}_{j}");
            let halves = b
                .ops_multi(
                    "split",
                    &name("halves"),
                    &[("x", part.into()), ("num_splits", Literal::i32(2).into()), ("axis", Literal::i32(-1).into())],
                )
                .unwrap();
            let (lo, hi) = (halves[0], halves[1]);
            let a = op!("mul", name("lc"), x = lo, y = cos);
            let c = op!("mul", name("hs"), x = hi, y = sin);
            let first = op!("sub", name("first"), x = a, y = c);
            let a = op!("mul", name("ls"), x = lo, y = sin);
            let c = op!("mul", name("hc"), x = hi, y = cos);
            let second = op!("add", name("second"), x = a, y = c);
            rotated.push(op!("concat", name("rot"), values = vec![first, second], axis = Literal::i32(-1)));
        }
        let mut updated = Vec::new();
        for (j, (&cache, new)) in caches.iter().zip([rotated[1], parts[2]]).enumerate() {
            let name = |what: &str| format!("{what}_{i}_{j}");
            let old = op!("read_state", name("old"), input = cache);
            let spread = op!("matmul", name("spread"), x = write, y = new);
            let stays = op!("mul", name("stays"), x = old, y = kept);
            let update = op!("add", name("update"), x = stays, y = spread);
            b.write_state(&name("write"), cache, update).unwrap();
            updated.push(op!("read_state", name("now"), input = cache));
        }
        let group = heads / kv_heads;
        let mut attended = Vec::new();
        for g in 0..kv_heads {
            let name = |what: &str| format!("{what}_{i}_{g}");
            let window = |from: usize, n: usize, rows: usize| {
                (ints(&[0, from as i32, 0, 0]), ints(&[1, n as i32, rows as i32, head_dim as i32]))
            };
            let (begin, size) = window(g * group, group, t);
            let q = op!("slice_by_size", name("q"), x = rotated[0], begin = begin, size = size);
            let (begin, size) = window(g, 1, s);
            let k = op!("slice_by_size", name("k"), x = updated[0], begin = begin, size = size);
            let (begin, size) = window(g, 1, s);
            let v = op!("slice_by_size", name("v"), x = updated[1], begin = begin, size = size);
            let scores = op!("matmul", name("scores"), x = q, y = k, transpose_y = Literal::bool(true));
            let scaled = op!("mul", name("scaled"), x = scores, y = Literal::f16(1.0 / (head_dim as f32).sqrt()));
            let masked = op!("add", name("masked"), x = scaled, y = mask);
            let weights = op!("softmax", name("weights"), x = masked, axis = Literal::i32(-1));
            attended.push(op!("matmul", name("attended"), x = weights, y = v));
        }
        let all = op!("concat", format!("all_{i}"), values = attended, axis = Literal::i32(1));
        let columns = op!("transpose", format!("columns_{i}"), x = all, perm = ints(&[0, 1, 3, 2]));
        let flat = op!(
            "reshape",
            format!("flat_{i}"),
            x = columns,
            shape = ints(&[1, (heads * head_dim) as i32, t as i32, 1])
        );
        let out = op!("conv", format!("out_{i}"), x = flat, weight = weight(&mut r, d, heads * head_dim));
        hidden = op!("add", format!("residual_{i}"), x = hidden, y = out);
        let gamma = Literal::f16s(&[d, 1, 1], &floats(&mut r, d, 1.0));
        let normed = norm!(format!("ffn_norm_{i}"), hidden, gamma);
        let up = op!("conv", format!("gate_up_{i}"), x = normed, weight = weight(&mut r, 2 * ffn, d));
        let halves = b
            .ops_multi(
                "split",
                &format!("gate_and_up_{i}"),
                &[("x", up.into()), ("num_splits", Literal::i32(2).into()), ("axis", Literal::i32(1).into())],
            )
            .unwrap();
        let gate = op!("silu", format!("gate_{i}"), x = halves[0]);
        let gated = op!("mul", format!("gated_{i}"), x = gate, y = halves[1]);
        let down = op!("conv", format!("down_{i}"), x = gated, weight = weight(&mut r, d, ffn));
        hidden = op!("add", format!("hidden_{i}"), x = hidden, y = down);
    }
    b.finish(&[("hidden", hidden)]).unwrap()
}

/// The inputs of [`shard`] for `tokens` positions from `first` on.
fn inputs(model: &dyn Model, dims: Dims, first: usize, tokens: usize) -> Vec<Tensor> {
    let float = model.float();
    let (half, s) = (dims.head_dim / 2, dims.context);
    let positions = first..first + tokens;
    let embedding: Vec<Vec<f32>> =
        positions.clone().map(|p| floats(&mut Rng::new(1000 + p as u64), dims.width, 2.0)).collect();
    let x = (0..dims.width).flat_map(|c| embedding.iter().map(move |e| e[c])).collect();
    let angle = |p: usize, i: usize| p as f32 / 10000f32.powf(i as f32 / half as f32);
    let table = |f: fn(f32) -> f32| positions.clone().flat_map(|p| (0..half).map(move |i| f(angle(p, i)))).collect();
    let mask = positions.clone().flat_map(|p| (0..s).map(move |c| if c <= p { 0.0 } else { -1e4 })).collect();
    let write = (0..s).flat_map(|c| positions.clone().map(move |p| f32::from(u8::from(p == c)))).collect();
    vec![
        Tensor::from_f32(&[1, dims.width, tokens, 1], x, float),
        Tensor::from_f32(&[tokens, half], table(f32::cos), float),
        Tensor::from_f32(&[tokens, half], table(f32::sin), float),
        Tensor::from_f32(&[1, 1, tokens, s], mask, float),
        Tensor::from_f32(&[1, 1, s, tokens], write, float),
    ]
}

const DIMS: Dims = Dims { layers: 2, width: 48, heads: 4, kv_heads: 2, head_dim: 16, ffn: 80, context: 24 };

/// The hidden state of every position, computed in blocks of the sizes given.
fn run(model: &PortableModel, dims: Dims, blocks: &[usize]) -> Vec<Vec<f32>> {
    let mut state = model.new_state().unwrap();
    let mut hidden = Vec::new();
    for &tokens in blocks {
        let name = format!("t{tokens}");
        let function = model.functions().iter().position(|f| f.name == name).unwrap();
        let given = inputs(model, dims, hidden.len(), tokens);
        let out = model.run(function, &given.iter().collect::<Vec<_>>(), &mut state).unwrap();
        assert_eq!(out[0].shape(), [1, dims.width, tokens, 1]);
        let values = out[0].to_f32();
        hidden.extend((0..tokens).map(|t| (0..dims.width).map(|c| values[c * tokens + t]).collect()));
    }
    hidden
}

fn bits(hidden: &[Vec<f32>]) -> Vec<Vec<u32>> {
    hidden.iter().map(|h| h.iter().map(|v| v.to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn blocks_and_threads_change_nothing(
        blocks in prop::collection::vec(1usize..=6, 1..6),
        threads in 1usize..4,
        ane in any::<bool>(),
        heads in prop::sample::select(vec![(2usize, 1usize), (4, 2), (3, 3)]),
        head_dim in prop::sample::select(vec![6usize, 16]),
        width in prop::sample::select(vec![20usize, 48, 601]),
    ) {
        let (heads, kv_heads) = heads;
        let total: usize = blocks.iter().sum();
        let dims = Dims { heads, kv_heads, head_dim, width, context: total + 3, ..DIMS };
        let program = program((1..=6).map(|t| shard(&format!("t{t}"), dims, t)).collect());
        let numerics = if ane { Numerics::Ane } else { Numerics::Exact };
        let alone = run(&model(&program, numerics, 1), dims, &vec![1; total]);
        let split = run(&model(&program, numerics, threads), dims, &blocks);
        prop_assert!(alone.iter().flatten().all(|v| v.is_finite()));
        prop_assert_eq!(bits(&alone), bits(&split));
    }
}

#[test]
fn threads_change_nothing_where_they_are_used() {
    // Wide enough that kernels do split.
    let dims = Dims { layers: 1, width: 512, heads: 8, kv_heads: 2, head_dim: 64, ffn: 700, context: 16 };
    let program = program([1, 4].map(|t| shard(&format!("t{t}"), dims, t)).into());
    let one = run(&model(&program, Numerics::Exact, 1), dims, &[4, 4, 1, 1]);
    let three = run(&model(&program, Numerics::Exact, 3), dims, &[1, 1, 4, 4]);
    assert_eq!(bits(&one), bits(&three));
}

#[test]
fn what_was_said_before_matters_and_a_new_state_forgets_it() {
    let program = program(vec![shard("t1", DIMS, 1), shard("t2", DIMS, 2)]);
    let model = model(&program, Numerics::Exact, 1);
    let three = run(&model, DIMS, &[1, 1, 1]);
    assert_ne!(three[1], three[2]);
    // The second token without the first: another context, another result.
    let mut state = model.new_state().unwrap();
    let given = inputs(&model, DIMS, 1, 1);
    let alone = model.run(0, &given.iter().collect::<Vec<_>>(), &mut state).unwrap()[0].to_f32();
    assert!(alone.iter().zip(&three[1]).any(|(a, b)| a != b));
    assert_eq!(run(&model, DIMS, &[1, 1, 1]), three);
}

#[test]
fn fp16_results_stay_near_the_exact_ones() {
    let program = program(vec![shard("t1", DIMS, 1)]);
    let exact = run(&model(&program, Numerics::Exact, 1), DIMS, &[1; 8]);
    let ane = run(&model(&program, Numerics::Ane, 1), DIMS, &[1; 8]);
    let worst = exact.iter().flatten().zip(ane.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 0.0, "fp16 rounding must show");
    assert!(worst < 0.05, "fp16 results are {worst} away from the exact ones");
}
