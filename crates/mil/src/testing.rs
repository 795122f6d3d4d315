//! Random valid programs, for tests and fuzzing of everything that takes one.
//!
//! A seed decides everything. Values are small and shapes tiny, so that a program can also be executed in no time; ops are
//! tried at random on what is there, and what the type rules refuse is not added, so every rule is met from both sides.

use crate::build::{FunctionBuilder, Operand, program};
use crate::ir::{Dim, Dtype, Flexibility, Function, Literal, Program, TensorType, ValueId};

/// A small generator (splitmix64): the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`; 0 where `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    /// A coin.
    pub fn flip(&mut self) -> bool {
        self.bits() & 1 == 1
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// A float of either sign, exactly an eighth of an integer and below 4: exact in fp16.
    pub fn float(&mut self) -> f32 {
        self.below(63) as f32 / 8.0 - 31.0 / 8.0
    }
}

/// A literal of random elements that its type can hold.
pub fn literal(rng: &mut Rng, ty: &TensorType) -> Literal {
    let n = ty.elements().unwrap_or(0);
    let shape: Vec<usize> = ty.fixed_shape().unwrap_or_default();
    match ty.dtype {
        Dtype::F16 => Literal::f16s(&shape, &(0..n).map(|_| rng.float()).collect::<Vec<_>>()),
        Dtype::F32 => Literal::f32s(&shape, &(0..n).map(|_| rng.float()).collect::<Vec<_>>()),
        Dtype::I32 => {
            let bytes: Vec<u8> = (0..n).flat_map(|_| (rng.below(17) as i32 - 8).to_le_bytes()).collect();
            Literal::from_bytes(ty.clone(), bytes)
        }
        Dtype::Bool => Literal::from_bytes(ty.clone(), (0..n).map(|_| u8::from(rng.flip())).collect::<Vec<_>>()),
        _ => {
            let mut bytes: Vec<u8> = (0..ty.bytes().unwrap_or(0)).map(|_| rng.bits() as u8).collect();
            // Bits beyond the last element are zero.
            let used = n * ty.dtype.bits() % 8;
            if let (Some(last), 1..) = (bytes.last_mut(), used) {
                *last &= (1 << used) - 1;
            }
            Literal::from_bytes(ty.clone(), bytes)
        }
    }
}

/// A valid program: one function or two that share weights and states.
pub fn random_program(seed: u64) -> Program {
    let mut rng = Rng::new(seed);
    let mut functions = vec![function(&mut rng, "main")];
    if rng.below(3) == 0 {
        // A copy shares every weight.
        let mut other = functions[0].clone();
        other.name = "prefill".to_owned();
        functions.push(other);
    }
    let metadata = (0..rng.below(3)).map(|i| (format!("key.{i}"), format!("text \"{}\"\n", rng.bits()))).collect();
    let mut p = program(functions, metadata);
    if rng.flip() {
        p.about.short_description = "Random ops.".to_owned();
    }
    p
}

fn shape(rng: &mut Rng) -> Vec<usize> {
    let rank = 1 + rng.below(4);
    (0..rank).map(|_| *rng.pick(&[1, 1, 2, 3, 4, 8])).collect()
}

fn function(rng: &mut Rng, name: &str) -> Function {
    // Names and types of ports are the generator's own and fit; an error would be a bug of the builder.
    try_function(rng, name).unwrap_or_else(|e| unreachable!("{e}"))
}

fn try_function(rng: &mut Rng, name: &str) -> Result<Function, crate::BuildError> {
    let mut b = FunctionBuilder::new(name, "CoreML8")?;
    let mut values = Vec::new();
    for i in 0..1 + rng.below(3) {
        let dtype = *rng.pick(&[Dtype::F16, Dtype::F16, Dtype::F32, Dtype::I32]);
        let shape = shape(rng);
        let name = format!("x{i}");
        values.push(match rng.below(6) {
            0 => {
                let mut ty = TensorType::new(dtype, &shape);
                ty.shape[0] = Dim::Unknown;
                let (flexibility, shape) = flexibility(rng, &shape);
                b.flexible_input(&name, ty, &shape, flexibility)?
            }
            _ => b.input(&name, TensorType::new(dtype, &shape))?,
        });
    }
    let mut states = Vec::new();
    for i in 0..rng.below(3) {
        states.push(b.state(&format!("s{i}"), TensorType::new(Dtype::F16, &shape(rng)))?);
    }
    for i in 0..4 + rng.below(12) {
        let name = format!("v{i}");
        match rng.below(8) {
            0 => values.extend(constexpr(rng, &mut b, &name)),
            1 if !states.is_empty() => {
                let state = *rng.pick(&states);
                let read = b.op("read_state", &name, &[("input", state.into())])?;
                values.push(read);
                if rng.flip() {
                    let two = b.op("add", &format!("{name}_twice"), &[("x", read.into()), ("y", read.into())])?;
                    b.write_state(&format!("{name}_write"), state, two)?;
                }
            }
            _ => values.extend(computed(rng, &mut b, &name, &values)),
        }
    }
    // No port is empty, and values may be: the shape of a scalar is.
    let port = |b: &FunctionBuilder, id: ValueId| {
        let ty = b.ty(id);
        matches!(ty.dtype, Dtype::F16 | Dtype::F32 | Dtype::I32) && ty.elements() != Some(0)
    };
    let usable: Vec<ValueId> = values.iter().copied().filter(|&id| port(&b, id)).collect();
    let outputs: Vec<ValueId> = (0..1 + rng.below(3)).map(|_| *rng.pick(&usable)).collect();
    let names: Vec<String> = (0..outputs.len()).map(|i| format!("y{i}")).collect();
    let named: Vec<(&str, ValueId)> = names.iter().map(String::as_str).zip(outputs).collect();
    b.finish(&named)
}

fn flexibility(rng: &mut Rng, shape: &[usize]) -> (Flexibility, Vec<usize>) {
    let mut default = shape.to_vec();
    default[0] = 2;
    if rng.flip() {
        let mut bounds: Vec<_> = shape.iter().map(|&n| (n, Some(n))).collect();
        bounds[0] = (1, Some(16));
        return (Flexibility::Range(bounds), default);
    }
    let mut other = default.clone();
    other[0] = 5;
    (Flexibility::Enumerated(vec![default.clone(), other]), default)
}

/// An op on what is there, or nothing where the type rules refuse it.
fn computed(rng: &mut Rng, b: &mut FunctionBuilder, name: &str, values: &[ValueId]) -> Vec<ValueId> {
    let x = *rng.pick(values);
    let ty = b.ty(x).clone();
    let rank = ty.rank();
    let fixed: Vec<usize> = ty.shape.iter().map(|d| d.fixed().unwrap_or(2)).collect();
    let axis = if rank == 0 { 0 } else { rng.below(rank) as i32 - if rng.flip() { rank as i32 } else { 0 } };
    // Another value, a scalar, or a tensor of the same shape.
    let second: Operand = match rng.below(3) {
        0 => (*rng.pick(values)).into(),
        1 => literal(rng, &TensorType::scalar(ty.dtype)).into(),
        _ => literal(rng, &TensorType::new(ty.dtype, &fixed)).into(),
    };
    let x = || Operand::from(x);
    let operands: (&str, Vec<(&str, Operand)>) = match rng.below(20) {
        0..=3 => (
            *rng.pick(&[
                "add",
                "sub",
                "mul",
                "maximum",
                "minimum",
                "greater",
                "less_equal",
                "equal",
                "real_div",
                "logical_or",
                "pow",
            ]),
            vec![("x", x()), ("y", second)],
        ),
        4..=6 => (
            *rng.pick(&[
                "relu",
                "silu",
                "sigmoid",
                "tanh",
                "exp",
                "abs",
                "square",
                "softplus",
                "erf",
                "identity",
                "floor",
                "gelu",
                "logical_not",
                "rsqrt",
                "sqrt",
                "shape",
            ]),
            vec![("x", x())],
        ),
        7 => (
            *rng.pick(&[
                "reduce_sum",
                "reduce_mean",
                "reduce_max",
                "reduce_sum_square",
                "reduce_l2_norm",
                "reduce_log_sum_exp",
            ]),
            vec![("x", x()), ("axes", Literal::i32s(&[axis]).into()), ("keep_dims", Literal::bool(rng.flip()).into())],
        ),
        8 => ("softmax", vec![("x", x()), ("axis", Literal::i32(axis).into())]),
        9 => {
            let mut perm: Vec<i32> = (0..rank as i32).collect();
            for i in (1..perm.len()).rev() {
                perm.swap(i, rng.below(i + 1));
            }
            ("transpose", vec![("x", x()), ("perm", Literal::i32s(&perm).into())])
        }
        10 => {
            let mut shape: Vec<i32> = fixed.iter().map(|&n| n as i32).collect();
            shape.reverse();
            if let Some(last) = shape.last_mut() {
                *last = -1;
            }
            ("reshape", vec![("x", x()), ("shape", Literal::i32s(&shape).into())])
        }
        11 => ("expand_dims", vec![("x", x()), ("axes", Literal::i32s(&[rng.below(rank + 1) as i32]).into())]),
        12 => ("squeeze", vec![("x", x())]),
        13 => {
            let begin: Vec<i32> = fixed.iter().map(|&n| rng.below(n) as i32).collect();
            let end: Vec<i32> =
                begin.iter().zip(&fixed).map(|(&b, &n)| b + 1 + rng.below(n - b as usize) as i32).collect();
            let mask: Vec<bool> = fixed.iter().map(|_| rng.flip()).collect();
            let mut operands = vec![
                ("x", x()),
                ("begin", Literal::i32s(&begin).into()),
                ("end", Literal::i32s(&end).into()),
                ("end_mask", Literal::bools(&mask).into()),
            ];
            if rng.flip() {
                let stride: Vec<i32> = fixed.iter().map(|_| 1 + rng.below(2) as i32).collect();
                operands.push(("stride", Literal::i32s(&stride).into()));
            }
            ("slice_by_index", operands)
        }
        14 => {
            let same: Vec<ValueId> = values.iter().copied().filter(|&v| *b.ty(v) == ty).take(3).collect();
            let interleave = rng.flip();
            let operands = vec![
                ("values", Operand::Many(same)),
                ("axis", Literal::i32(axis).into()),
                ("interleave", Literal::bool(interleave).into()),
            ];
            ("concat", operands)
        }
        15 => ("split", vec![("x", x()), ("num_splits", Literal::i32(2).into()), ("axis", Literal::i32(axis).into())]),
        16 => {
            let inner = fixed.last().copied().unwrap_or(1);
            let transpose = rng.flip();
            let weight = if transpose { [3, inner] } else { [inner, 3] };
            let y = literal(rng, &TensorType::new(ty.dtype, &weight));
            ("matmul", vec![("x", x()), ("y", y.into()), ("transpose_y", Literal::bool(transpose).into())])
        }
        17 => {
            let inner = fixed.last().copied().unwrap_or(1);
            let out = *rng.pick(&[3, 16]);
            ("linear", vec![("x", x()), ("weight", literal(rng, &TensorType::new(ty.dtype, &[out, inner])).into())])
        }
        18 => (
            "cast",
            vec![("x", x()), ("dtype", Literal::string(rng.pick::<&str>(&["fp16", "fp32", "int32", "bool"])).into())],
        ),
        _ => {
            let channels = fixed.get(1).copied().unwrap_or(1);
            let kernel: Vec<usize> = [4, channels].into_iter().chain((2..rank).map(|_| 1)).collect();
            let weight = literal(rng, &TensorType::new(ty.dtype, &kernel));
            let bias = literal(rng, &TensorType::new(ty.dtype, &[4]));
            let pad_type = *rng.pick(&["valid", "same", "custom"]);
            let operands = vec![
                ("x", x()),
                ("weight", weight.into()),
                ("bias", bias.into()),
                ("pad_type", Literal::string(pad_type).into()),
            ];
            ("conv", operands)
        }
    };
    b.ops_multi(operands.0, name, &operands.1).unwrap_or_default()
}

/// A compressed weight.
fn constexpr(rng: &mut Rng, b: &mut FunctionBuilder, name: &str) -> Vec<ValueId> {
    let float = *rng.pick(&[Dtype::F16, Dtype::F32]);
    let (rows, columns) = (*rng.pick(&[2, 4]), *rng.pick(&[4, 8, 64]));
    let dense = |dtype| TensorType::new(dtype, &[rows, columns]);
    let made = match rng.below(3) {
        0 => {
            let dtype = *rng.pick(&[Dtype::I8, Dtype::U8, Dtype::I4, Dtype::U4]);
            let scale = TensorType::new(float, rng.pick::<[usize; 2]>(&[[1, 1], [rows, 1], [rows, 2]]));
            let mut operands =
                vec![("data", literal(rng, &dense(dtype)).into()), ("scale", literal(rng, &scale).into())];
            if rng.flip() {
                operands.push(("offset", literal(rng, &TensorType { dtype, ..scale }).into()));
            }
            b.ops_multi("constexpr_blockwise_shift_scale", name, &operands)
        }
        1 => {
            let dtype = *rng.pick(&[Dtype::U1, Dtype::U2, Dtype::U3, Dtype::U4, Dtype::U6, Dtype::U8]);
            let vector = *rng.pick(&[1, 2]);
            let lut = TensorType::new(float, &[*rng.pick(&[1, 2]), 1, 1 << dtype.bits(), vector]);
            let mut operands: Vec<(&str, Operand)> =
                vec![("indices", literal(rng, &dense(dtype)).into()), ("lut", literal(rng, &lut).into())];
            if vector > 1 {
                operands.push(("vector_axis", Literal::i32(rng.below(2) as i32).into()));
            }
            b.ops_multi("constexpr_lut_to_dense", name, &operands)
        }
        _ => {
            let mask = literal(rng, &dense(Dtype::U1));
            let ones: u32 = mask.bytes().unwrap_or_default().iter().map(|b| b.count_ones()).sum();
            let data = literal(rng, &TensorType::new(float, &[ones as usize]));
            b.ops_multi("constexpr_sparse_to_dense", name, &[("nonzero_data", data.into()), ("mask", mask.into())])
        }
    };
    made.unwrap_or_else(|e| unreachable!("{e}"))
}
