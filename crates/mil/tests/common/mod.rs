//! A small shard, and where the files of a package are.

use std::path::{Path, PathBuf};

use anemone_mil::ir::{Dtype, Function, Literal, TensorType};
use anemone_mil::{FunctionBuilder, program, validate, write};

/// A function with everything that a language model's shard has: a norm, an int8 projection with a bias, a state that is
/// read, updated and written, attention-like products, a gate. Weights are many enough to be in the weight file.
pub fn shard() -> Function {
    let f16 = |shape: &[usize]| TensorType::new(Dtype::F16, shape);
    let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
    let x = b.input("x", f16(&[1, 16, 1, 1])).unwrap();
    let mask = b.input("mask", f16(&[1, 1, 8, 1])).unwrap();
    let cache = b.state("cache", f16(&[1, 2, 8, 16])).unwrap();

    let half = Literal::f16(0.5);
    let scaled = b.op("mul", "scaled", &[("x", x.into()), ("y", half.into())]).unwrap();
    let square = b.op("pow", "square", &[("x", scaled.into()), ("y", Literal::f16(2.0).into())]).unwrap();
    let axes = Literal::i32s(&[1]);
    let keep = Literal::bool(true);
    let operands = [("x", square.into()), ("axes", axes.into()), ("keep_dims", keep.into())];
    let mean = b.op("reduce_mean", "mean", &operands).unwrap();
    let root = b.op("rsqrt", "root", &[("x", mean.into()), ("epsilon", Literal::f16(1e-5).into())]).unwrap();
    let norm = b.op("mul", "norm", &[("x", scaled.into()), ("y", root.into())]).unwrap();
    let gamma = Literal::f16s(&[16, 1, 1], &(0..16).map(|i| i as f32 / 16.0).collect::<Vec<_>>());
    let normed = b.op("mul", "normed", &[("x", norm.into()), ("y", gamma.into())]).unwrap();

    let data: Vec<u8> = (0..32 * 16).map(|i| (i * 7 % 255) as u8).collect();
    let data = Literal::from_bytes(TensorType::new(Dtype::I8, &[32, 16, 1, 1]), data);
    let scale = Literal::f16s(&[32, 1, 1, 1], &[0.01; 32]);
    let weight =
        b.op("constexpr_blockwise_shift_scale", "weight", &[("data", data.into()), ("scale", scale.into())]).unwrap();
    let bias = Literal::f16s(&[32], &[0.25; 32]);
    let operands = [("x", normed.into()), ("weight", weight.into()), ("bias", bias.into())];
    let projected = b.op("conv", "projected", &operands).unwrap();

    let shape = Literal::i32s(&[1, 2, 1, 16]);
    let row = b.op("reshape", "row", &[("x", projected.into()), ("shape", shape.into())]).unwrap();
    let old = b.op("read_state", "old", &[("input", cache.into())]).unwrap();
    let new = b.op("mul", "new", &[("x", row.into()), ("y", mask.into())]).unwrap();
    let sum = b.op("add", "sum", &[("x", old.into()), ("y", new.into())]).unwrap();
    b.write_state("store", cache, sum).unwrap();
    let operands = [("x", row.into()), ("y", sum.into()), ("transpose_y", Literal::bool(true).into())];
    let scores = b.op("matmul", "scores", &operands).unwrap();
    let gate = b.op("silu", "gate", &[("x", scores.into())]).unwrap();
    b.finish(&[("hidden", gate)]).unwrap()
}

/// Writes [`shard`] into a directory.
pub fn written(dir: &Path) -> PathBuf {
    let path = dir.join("shard.mlpackage");
    write(&validate(program(vec![shard()], Default::default())).unwrap(), &path).unwrap();
    path
}

/// The model file of a package.
pub fn model_file(package: &Path) -> PathBuf {
    package.join("Data/com.apple.CoreML/model.mlmodel")
}

/// The weight file of a package.
pub fn weight_file(package: &Path) -> PathBuf {
    package.join("Data/com.apple.CoreML/weights/weight.bin")
}
