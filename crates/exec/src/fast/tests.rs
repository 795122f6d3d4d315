//! Kernels on every instruction set of this machine: equal bits, and near what f64 says.

use std::sync::Arc;

use anemone_mil::ir::{Dtype, Literal, TensorType};
use anemone_mil::testing::Rng;
use proptest::prelude::*;

use super::attention::{Answer, Attention, Layer, Masked, Masks, Write};
use super::cache::Cache;
use super::linear::{Activations, Bytes, Matrix, Output, PADDING, Product, Weights, round_row};
use super::resident::Copy;
use super::rows::{Arena, Prepared, Rotation, Row, RowSource, Turned, View};
use super::simd::{Isa, LANES, Simd, Task, exp};
use super::team::Team;

/// Numbers in -1..1.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n).map(|_| (rng.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|v| v.to_bits()).collect()
}

/// The same of every instruction set; the plain one's result.
fn everywhere(f: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let plain = f(Isa::Plain);
    for isa in Isa::available() {
        assert_eq!(bits(&f(isa)), bits(&plain), "{} differs from plain", isa.name());
    }
    plain
}

/// Every operation of [`Simd`] on sixteen pairs.
struct Operations<'a>(&'a [f32], &'a [f32]);

impl Task for Operations<'_> {
    type Out = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let (a, b) = (s.load_some(self.0), s.load_some(self.1));
        let mut out = Vec::new();
        for v in [s.add(a, b), s.sub(a, b), s.mul(a, b), s.div(a, b), s.max(a, b), s.min(a, b)] {
            out.extend(s.lanes(v));
        }
        out.extend(s.lanes(s.mul_add(a, b, a)));
        out.extend(s.lanes(s.round(s.mul(a, s.splat(9.0)))));
        out.extend(s.lanes(s.exp2i(s.round(s.mul(a, s.splat(126.0))))));
        out.extend(s.lanes(exp(s, s.mul(b, s.splat(100.0)))));
        out.extend([s.sum(a), s.largest(b)]);
        let mut ints = [0i16; LANES];
        // SAFETY: sixteen integers.
        unsafe { s.store_i16(ints.as_mut_ptr(), s.mul(a, s.splat(32767.0))) };
        out.extend(ints.map(f32::from));
        let halves: Vec<u8> = self.0.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
        // SAFETY: sixteen halves.
        out.extend(s.lanes(unsafe { s.load_f16(halves.as_ptr()) }));
        out
    }
}

#[test]
fn exponentials_are_near_and_vanish() {
    struct Exp(f32);
    impl Task for Exp {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            s.lanes(exp(s, s.splat(self.0))).to_vec()
        }
    }
    for i in -870..=880 {
        let v = i as f32 / 10.0;
        let (found, expected) = (f64::from(everywhere(|isa| isa.run(Exp(v)))[0]), f64::from(v).exp());
        assert!((found / expected - 1.0).abs() < 3e-7, "exp({v}) = {found}, expected {expected}");
    }
    for v in [-1e4, -88.1, f32::NEG_INFINITY] {
        assert_eq!(everywhere(|isa| isa.run(Exp(v)))[0], 0.0, "exp({v})");
    }
}

/// `W x` of random weights, for tokens in blocks of the sizes given.
struct Case {
    matrix: Matrix,
    /// The weights' values.
    values: Vec<f64>,
    x: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(seed: u64, rows: usize, columns: usize, tokens: usize, int8: bool, scales: usize) -> Self {
        let noise_ = noise(seed, rows * columns);
        let shape = TensorType::new(if int8 { Dtype::I8 } else { Dtype::F16 }, &[rows, columns]);
        let (elements, values) = if int8 {
            let ints: Vec<i8> = noise_.iter().map(|v| (v * 128.0).floor() as i8).collect();
            let scales: Vec<f32> = noise(seed + 1, scales).iter().map(|v| v / 50.0).collect();
            let value =
                |i: usize| f64::from(ints[i]) * f64::from(scales[if scales.len() == 1 { 0 } else { i / columns }]);
            let values = (0..ints.len()).map(value).collect();
            let data = Literal::from_bytes(shape, ints.iter().map(|&v| v as u8).collect::<Vec<_>>());
            ((Weights::Int8(scales.clone().into()), data), values)
        } else {
            let halves: Vec<half::f16> = noise_.iter().map(|&v| half::f16::from_f32(v)).collect();
            let values = halves.iter().map(|v| v.to_f64()).collect();
            let bytes = halves.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
            ((Weights::Half, Literal::from_bytes(shape, bytes)), values)
        };
        // A few large ones, as activations have.
        let mut x = noise(seed + 2, tokens * columns);
        x.iter_mut().step_by(97).for_each(|v| *v *= 30.0);
        let (elements, data) = elements;
        Self {
            matrix: Matrix { rows, columns, elements, data: Bytes::stored(data) },
            values,
            x,
            bias: noise(seed + 3, rows),
        }
    }

    /// The same sizes with a palette for each of `groups` of rows, as indices and as what they stand for.
    fn palettes(seed: u64, rows: usize, columns: usize, tokens: usize, groups: usize) -> [Self; 2] {
        let case = Self::new(seed, rows, columns, tokens, false, 1);
        let indices: Vec<u8> = noise(seed + 4, rows * columns).iter().map(|v| (v.abs() * 16.0) as u8 & 15).collect();
        let entries = noise(seed + 5, groups * LANES).into_iter();
        let tables: Arc<[f32]> = entries.map(|v| half::f16::from_f32(v).to_f32()).collect();
        let each = rows / groups * columns;
        let values: Vec<f32> =
            indices.iter().enumerate().map(|(i, &index)| tables[i / each * LANES + usize::from(index)]).collect();
        let packed: Vec<u8> = indices.chunks(2).map(|two| two[0] | two[1] << 4).collect();
        let shape = [rows, columns];
        let forms = [
            (Weights::Palette(tables), Literal::from_bytes(TensorType::new(Dtype::U4, &shape), packed)),
            (Weights::Half, Literal::f16s(&shape, &values)),
        ];
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        forms.map(|(elements, data)| {
            let matrix = Matrix { rows, columns, elements, data: Bytes::stored(data) };
            assert!(matrix.is_whole());
            Self { matrix, values: values.clone(), x: case.x.clone(), bias: case.bias.clone() }
        })
    }

    fn run(&self, isa: Isa, blocks: &[usize]) -> Vec<f32> {
        let Matrix { rows, columns, .. } = self.matrix;
        let padded = columns.next_multiple_of(PADDING);
        let tokens = self.x.len() / columns;
        let mut out = vec![f32::NAN; tokens * rows];
        let mut first = 0;
        for &block in blocks {
            let (mut floats, mut ints, mut worth) =
                (vec![0.0; block * padded], vec![0; block * padded], vec![0.0; block]);
            for t in 0..block {
                floats[t * padded..][..columns].copy_from_slice(&self.x[(first + t) * columns..][..columns]);
                struct Round<'a>(&'a [f32], &'a mut [i16]);
                impl Task for Round<'_> {
                    type Out = f32;
                    #[inline(always)]
                    fn run<S: Simd>(self, s: S) -> f32 {
                        round_row(s, self.0, self.1)
                    }
                }
                worth[t] =
                    isa.run(Round(&floats[t * padded..(t + 1) * padded], &mut ints[t * padded..(t + 1) * padded]));
            }
            let (floats, ints, scales) = (floats.as_ptr(), ints.as_ptr(), worth.as_ptr());
            let x = Activations { floats, ints, scales, padded, tokens: block };
            // SAFETY: the block's part of the result.
            let y = Output { out: unsafe { out.as_mut_ptr().add(first * rows) }, stride: rows, residual: None };
            for rows in [0..rows / 3, rows / 3..rows] {
                isa.run(Product { matrix: &self.matrix, bias: Some(&self.bias), rows, x, y });
            }
            first += block;
        }
        assert_eq!(first, tokens);
        out
    }

    /// The largest difference from f64, as a part of the sum of magnitudes.
    fn error(&self, found: &[f32]) -> f64 {
        let Matrix { rows, columns, .. } = self.matrix;
        let mut worst = 0.0f64;
        for (i, &found) in found.iter().enumerate() {
            let (t, row) = (i / rows, i % rows);
            let products = (0..columns).map(|k| self.values[row * columns + k] * f64::from(self.x[t * columns + k]));
            let magnitude: f64 = products.clone().map(f64::abs).sum();
            let expected = products.sum::<f64>() + f64::from(self.bias[row]);
            worst = worst.max((f64::from(found) - expected).abs() / (magnitude + 1.0));
        }
        worst
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn operations_are_equal_everywhere(seed in any::<u64>(), large in 0.0f32..6.0) {
        let (mut a, b) = (noise(seed, LANES), noise(seed ^ 1, LANES));
        a[3] *= large;
        let a: Vec<f32> = a.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        everywhere(|isa| isa.run(Operations(&a, &b)));
    }

    #[test]
    fn products_are_exact_enough_and_never_depend_on_company(
        seed in any::<u32>(),
        rows in 1usize..40,
        columns in prop::sample::select(vec![1usize, 17, 32, 100, 576, 2048, 2049, 5000]),
        blocks in prop::collection::vec(1usize..12, 1..4),
        int8 in any::<bool>(),
        per_tensor in any::<bool>(),
    ) {
        let tokens = blocks.iter().sum();
        let case = Case::new(seed.into(), rows, columns, tokens, int8, if per_tensor { 1 } else { rows });
        let together = everywhere(|isa| case.run(isa, &blocks));
        let alone = case.run(Isa::best(), &vec![1; tokens]);
        prop_assert_eq!(bits(&together), bits(&alone));
        // 16 bits: the largest activation here is 30 to 60 times the usual one.
        let bound = if int8 { 2e-3 } else { 1e-5 };
        prop_assert!(case.error(&together) < bound, "{}", case.error(&together));
    }

    #[test]
    fn palettes_are_as_the_weights_that_they_stand_for(
        seed in any::<u64>(), rows in 1usize..5, groups in 1usize..4, columns in 1usize..70, tokens in 1usize..9,
    ) {
        let [palette, half] = Case::palettes(seed, rows * groups, 2 * columns, tokens, groups);
        let found = everywhere(|isa| palette.run(isa, &[tokens]));
        prop_assert_eq!(bits(&found), bits(&half.run(Isa::best(), &vec![1; tokens])));
        prop_assert!(half.error(&found) < 1e-6);
    }

    #[test]
    fn norms_gates_and_rotations_are_what_f64_says(
        seed in any::<u64>(), width in 1usize..80, tokens in 1usize..4, half in 1usize..9, rest in 0usize..9,
    ) {
        // Two values side by side, and tables behind them.
        let head = 2 * half + rest;
        let w = width * head;
        let place = |i: usize| View { place: i * w, stride: w, offset: 0, width: w };
        let table = |i: usize| View { place: 2 * w + i * half, stride: half, offset: 0, width: half };
        let mut memory = noise(seed, (2 * w + 2 * half) * tokens);
        let arena = Arena::new(memory.as_mut_ptr(), tokens);
        let gamma: Arc<[f32]> = noise(seed ^ 5, w).into();
        let turned =
            Turned { x: place(0), heads: width, rotation: Some(Rotation { cos: table(0), sin: table(1) }), scale: 0.25 };
        let sources = [
            RowSource::Norm { x: place(0), gamma: gamma.clone(), eps: 1e-5 },
            RowSource::Gate { gate: place(0), up: place(1) },
            RowSource::Sum(place(0), place(1)),
            RowSource::Turned(turned),
        ];
        for (which, source) in sources.iter().enumerate() {
            for token in 0..tokens {
                let found = everywhere(|isa| {
                    let mut out = vec![0.0; w];
                    isa.run(Prepared { row: Row { source, arena, token, out: &mut out }, ints: None });
                    out
                });
                // SAFETY: nobody writes.
                let row = |view: View| unsafe { arena.row(&view, token) }.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
                let (x, y, cos, sin) = (row(place(0)), row(place(1)), row(table(0)), row(table(1)));
                let mean = x.iter().map(|v| v * v).sum::<f64>() / w as f64;
                for i in 0..w {
                    let (base, at) = (i / head * head, i % head);
                    let expected = match which {
                        0 => x[i] / (mean + 1e-5).sqrt() * f64::from(gamma[i]),
                        1 => x[i] / (1.0 + (-x[i]).exp()) * y[i],
                        2 => x[i] + y[i],
                        _ if at < half => 0.25 * (x[i] * cos[at] - x[base + at + half] * sin[at]),
                        _ if at < 2 * half => 0.25 * (x[base + at - half] * sin[at - half] + x[i] * cos[at - half]),
                        _ => 0.25 * x[i],
                    };
                    prop_assert!((f64::from(found[i]) - expected).abs() < 1e-5, "{which}: {} {expected}", found[i]);
                }
            }
        }
    }
}

/// Attention over a few calls, on one instruction set: the mixtures of every token.
fn attend(isa: Isa, seed: u64, blocks: &[usize], rows: usize, odd_masks: bool) -> Vec<f32> {
    let (heads, kv, hd) = (6, 2, 48);
    let total: usize = blocks.iter().sum();
    let mut cache = Cache::new(kv, rows, hd);
    let cache = cache.raw();
    let (q, k, v) =
        (noise(seed, total * heads * hd), noise(seed ^ 1, total * kv * hd), noise(seed ^ 2, total * kv * hd));
    let mut results = Vec::new();
    let mut first = 0;
    for &tokens in blocks {
        let widths = [heads * hd, kv * hd, kv * hd, heads * hd];
        let mut at = 0;
        let views = widths.map(|width| {
            at += width;
            View { place: at - width, stride: width, offset: 0, width }
        });
        let mut memory = vec![0.0; at * tokens];
        for (from, (view, width)) in [&q, &k, &v].into_iter().zip(views.iter().zip(widths)) {
            memory[view.place * tokens..][..tokens * width].copy_from_slice(&from[first * width..][..tokens * width]);
        }
        let turned = |x: View, heads: usize, scale: f32| Turned { x, heads, rotation: None, scale };
        let attention = Attention {
            q: turned(views[0], heads, 0.3),
            k: turned(views[1], kv, 1.0),
            v: views[2],
            out: views[3],
            cache: 0,
            rows,
            masks: 0,
        };
        // Odd ones: a mask that is not 0 somewhere, and a write of a half.
        let visible = |t: usize, row: usize| match row <= first + t {
            true if odd_masks && row.is_multiple_of(5) => -0.5,
            true => 0.0,
            false => -1e4,
        };
        let mask: Vec<f32> = (0..tokens * rows).map(|i| visible(i / rows, i % rows)).collect();
        let one = if odd_masks { 0.5 } else { 1.0 };
        let write: Vec<f32> =
            (0..rows * tokens).map(|i| if i / tokens == first + i % tokens { one } else { 0.0 }).collect();
        let mut masks = Masks::default();
        masks.read(&mask, &write, tokens);
        let masked = Masked { masks: &masks, attention: &mask, write: &write };
        let arena = Arena::new(memory.as_mut_ptr(), tokens);
        let layer = Layer { attention: &attention, cache, masked, arena, tokens };
        for unit in 0..attention.writes(&masks, tokens) {
            isa.run(Write { layer, unit });
        }
        let mut scratch = vec![f32::NAN; attention.scratch()];
        // In any order.
        for unit in (0..attention.answers(tokens)).rev() {
            isa.run(Answer { layer, unit, scratch: &mut scratch });
        }
        results.extend_from_slice(&memory[views[3].place * tokens..]);
        first += tokens;
    }
    // What f64 says.
    let one = if odd_masks { 0.5 } else { 1.0 };
    for t in 0..total {
        for h in 0..heads {
            let g = h / (heads / kv);
            let dot = |row: usize| {
                (0..hd)
                    .map(|i| f64::from(q[(t * heads + h) * hd + i]) * 0.3 * f64::from(k[(row * kv + g) * hd + i] * one))
                    .sum::<f64>()
            };
            let bias = |row: usize| if odd_masks && row.is_multiple_of(5) { -0.5 } else { 0.0 };
            let weights: Vec<f64> = (0..=t).map(|row| (dot(row) + bias(row)).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for i in 0..hd {
                let value = |row: usize| f64::from(v[(row * kv + g) * hd + i] * one);
                let expected = weights.iter().enumerate().map(|(row, w)| w / sum * value(row)).sum::<f64>();
                let found = f64::from(results[(t * heads + h) * hd + i]);
                assert!((found - expected).abs() < 1e-5, "token {t} head {h}: {found}, expected {expected}");
            }
        }
    }
    results
}

#[test]
fn attention_is_what_f64_says_in_any_blocks() {
    for (seed, odd_masks) in [(1, false), (2, true)] {
        let alone = everywhere(|isa| attend(isa, seed, &[1; 21], 23, odd_masks));
        for blocks in [&[21][..], &[5, 9, 7], &[16, 1, 4]] {
            assert_eq!(bits(&attend(Isa::best(), seed, blocks, 23, odd_masks)), bits(&alone), "{blocks:?}");
        }
    }
}

#[test]
fn activations_never_overflow_their_sums() {
    // All as large as can be: the longest sums of the largest products.
    for columns in [2048, 8192] {
        let shape = TensorType::new(Dtype::I8, &[4, columns]);
        let data = Literal::from_bytes(shape, vec![(-128i8) as u8; 4 * columns]);
        let elements = Weights::Int8(vec![1.0].into());
        let x = vec![-3.0f32; columns];
        let case = Case {
            values: vec![-128.0; 4 * columns],
            matrix: Matrix { rows: 4, columns, elements, data: Bytes::stored(data) },
            x,
            bias: vec![0.0; 4],
        };
        let found = everywhere(|isa| case.run(isa, &[1]));
        assert!(case.error(&found) < 1e-3, "{found:?}");
    }
    let mut ints = [1i16; 32];
    struct Round<'a>([f32; 32], &'a mut [i16; 32]);
    impl Task for Round<'_> {
        type Out = f32;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            round_row(s, &self.0, self.1)
        }
    }
    assert_eq!(Isa::best().run(Round([0.0; 32], &mut ints)), 0.0);
    assert_eq!(ints, [0; 32]);
    for broken in [f32::NAN, f32::INFINITY] {
        let mut row = [1.0; 32];
        row[7] = broken;
        assert!(Isa::best().run(Round(row, &mut ints)).is_nan());
    }
}

#[test]
fn weights_are_copied_before_the_second_call_and_stay_the_same() {
    let case = |seed| Case::new(seed, 3, 100, 1, true, 1).matrix;
    let (a, b) = (case(1), case(2));
    // As functions of a package do, two matrices share their bytes.
    let mut matrices = [a.clone(), b, a];
    let before = matrices.each_ref().map(|m| m.bytes().to_vec());
    let stored = matrices.each_ref().map(|m| m.bytes().as_ptr());
    let copy = Copy::of(matrices.iter_mut());
    let team = Team::new(2);
    copy.before_call(&team);
    assert_eq!(matrices.each_ref().map(|m| m.bytes().as_ptr()), stored);
    copy.before_call(&team);
    let copied = matrices.each_ref().map(|m| m.bytes().as_ptr());
    assert!(copied.iter().zip(&stored).all(|(copied, stored)| copied != stored && copied.align_offset(64) == 0));
    assert!(copied[0] == copied[2] && copied[0] != copied[1]);
    assert_eq!(matrices.each_ref().map(|m| m.bytes().to_vec()), before);
    copy.before_call(&team);
    assert_eq!(matrices.each_ref().map(|m| m.bytes().as_ptr()), copied);
}
