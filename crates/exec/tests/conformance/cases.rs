//! Every op against what numpy says of it (`ops.json`, written by `crosscheck/goldens/ops.py`), on any runtime.
//!
//! A case is one op in a program of its own, written as a package and loaded from it; what cannot cross a package's
//! border is made inside: scalars from vectors of one, other types from int32. How far a result may be from the
//! exact one is the op table's business: the class of the op, and for sums the number and magnitude of their terms. A
//! runtime states what it skips and nothing else.

use std::collections::BTreeMap;

use anemone_exec::{Data, Model, Runtime, Tensor};
use anemone_mil::ir::{Dtype, Function, Literal, TensorType, ValueId};
use anemone_mil::ops::{self, Opset};
use anemone_mil::{BuildError, FunctionBuilder, Operand, validate};
use half::f16;
use serde_json::Value;

/// A runtime under test.
pub struct Subject {
    /// It.
    pub runtime: Box<dyn Runtime>,
    /// Ops it does not have.
    pub skips: &'static [&'static str],
}

/// A tensor of the suite.
struct Given {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<Value>,
}

impl Given {
    fn of(v: &Value) -> Self {
        let dtype = match v["dtype"].as_str().unwrap() {
            "fp16" => Dtype::F16,
            "fp32" => Dtype::F32,
            "int32" => Dtype::I32,
            "int8" => Dtype::I8,
            "uint8" => Dtype::U8,
            "uint16" => Dtype::U16,
            "bool" => Dtype::Bool,
            "string" => Dtype::String,
            other => panic!("{other}"),
        };
        let shape = v["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        Self { dtype, shape, data: v["data"].as_array().unwrap().clone() }
    }

    fn floats(&self) -> Vec<f32> {
        let number = |v: &Value| v.as_f64().unwrap_or_else(|| v.as_str().unwrap().parse().unwrap()) as f32;
        self.data.iter().map(number).collect()
    }

    fn ints(&self) -> Vec<i32> {
        self.data.iter().map(|v| v.as_i64().unwrap() as i32).collect()
    }

    fn ty(&self) -> TensorType {
        TensorType::new(self.dtype, &self.shape)
    }

    fn literal(&self) -> Literal {
        let ints = || self.ints().into_iter();
        match self.dtype {
            Dtype::F16 => Literal::f16s(&self.shape, &self.floats()),
            Dtype::F32 => Literal::f32s(&self.shape, &self.floats()),
            Dtype::String => Literal::string(self.data[0].as_str().unwrap()),
            Dtype::I32 => Literal::from_bytes(self.ty(), ints().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
            Dtype::U16 => {
                Literal::from_bytes(self.ty(), ints().flat_map(|v| (v as u16).to_le_bytes()).collect::<Vec<_>>())
            }
            _ => Literal::from_bytes(self.ty(), ints().map(|v| v as u8).collect::<Vec<_>>()),
        }
    }

    fn tensor(&self, float: Dtype) -> Tensor {
        let data = match self.dtype {
            Dtype::F16 => return Tensor::from_f32(&self.shape, self.floats(), float),
            Dtype::F32 => Data::F32(self.floats()),
            _ => Data::I32(self.ints()),
        };
        Tensor::new(&self.shape, data)
    }
}

/// The type in which a value crosses the border of a package.
fn border(dtype: Dtype) -> Dtype {
    if dtype.is_float() { dtype } else { Dtype::I32 }
}

/// A value as another type.
fn cast(builder: &mut FunctionBuilder, id: ValueId, from: Dtype, to: Dtype) -> Result<ValueId, BuildError> {
    match from == to {
        true => Ok(id),
        false => builder.op("cast", "cast", &[("x", id.into()), ("dtype", Literal::string(to.name()).into())]),
    }
}

/// Where a result differs from what is expected, if it does.
fn difference(case: &Value, expected: &Given, found: &Tensor) -> Option<String> {
    let scalar = expected.shape.is_empty() && found.shape() == [1];
    if found.shape() != expected.shape && !scalar {
        return Some(format!("shape {:?}, expected {:?}", found.shape(), expected.shape));
    }
    let rounded = found.dtype() == Dtype::F16;
    let dtype = match (expected.dtype, rounded) {
        (Dtype::F16 | Dtype::F32, true) => Dtype::F16,
        (Dtype::F16 | Dtype::F32, false) => Dtype::F32,
        (other, _) => border(other),
    };
    if found.dtype() != dtype {
        return Some(format!("{}, expected {dtype}", found.dtype()));
    }
    if !dtype.is_float() {
        let wanted = expected.ints().iter().map(|&v| v as f32).collect::<Vec<_>>();
        return (found.to_f32() != wanted).then(|| format!("{:?}, expected {wanted:?}", found.to_f32()));
    }
    let opset = Opset::from_name(case["opset"].as_str().unwrap()).unwrap();
    let tolerance = ops::spec_in(case["op"].as_str().unwrap(), opset).unwrap().tolerance;
    let (terms, magnitude) = (case["terms"].as_u64().unwrap() as usize, case["magnitude"].as_f64().unwrap() as f32);
    for (i, (&found, wanted)) in found.to_f32().iter().zip(expected.floats()).enumerate() {
        // An exact result of an op that only moves or chooses is an fp16 number already; others round.
        let nearest = if rounded { f16::from_f32(wanted).to_f32() } else { wanted };
        let allowed = tolerance.allowed(dtype, wanted, terms, magnitude);
        let near = found == nearest || (found - wanted).abs() <= allowed;
        if !near {
            return Some(format!("element {i} is {found:e}, expected {wanted:e} within {allowed:e}"));
        }
    }
    None
}

/// A case's function, and what it is given when it runs.
fn build(case: &Value, name: &str) -> Result<(Function, Vec<Given>), BuildError> {
    let mut builder = FunctionBuilder::new(name, case["opset"].as_str().unwrap())?;
    let mut given = Vec::new();
    let mut operands: Vec<(&str, Operand)> = Vec::new();
    for (name, value) in case["inputs"].as_object().unwrap() {
        let mut input = |port: &str, value: &Value| {
            let mut tensor = Given::of(value);
            let inside = tensor.dtype;
            tensor.dtype = border(inside);
            let scalar = tensor.shape.is_empty();
            if scalar {
                tensor.shape = vec![1];
            }
            let mut id = builder.input(port, tensor.ty())?;
            if scalar {
                id = builder.op("squeeze", "scalar", &[("x", id.into())])?;
            }
            let id = cast(&mut builder, id, tensor.dtype, inside)?;
            given.push(tensor);
            Ok::<_, BuildError>(id)
        };
        match value.as_array() {
            Some(values) => {
                let ids = values.iter().enumerate().map(|(i, v)| input(&format!("in_{name}_{i}"), v));
                operands.push((name, Operand::Many(ids.collect::<Result<_, _>>()?)));
            }
            None => operands.push((name, input(&format!("in_{name}"), value)?.into())),
        }
    }
    for (name, value) in case["params"].as_object().unwrap() {
        operands.push((name, Given::of(value).literal().into()));
    }
    let results = builder.ops_multi(case["op"].as_str().unwrap(), "op", &operands)?;
    let mut outputs = Vec::new();
    for (i, id) in results.into_iter().enumerate() {
        let inside = builder.ty(id).dtype;
        let id = match builder.ty(id).rank() {
            0 => builder.op("expand_dims", "vector", &[("x", id.into()), ("axes", Literal::i32s(&[0]).into())])?,
            _ => id,
        };
        outputs.push((format!("out_{i}"), cast(&mut builder, id, inside, border(inside))?));
    }
    let outputs: Vec<(&str, ValueId)> = outputs.iter().map(|(name, id)| (name.as_str(), *id)).collect();
    Ok((builder.finish(&outputs)?, given))
}

/// How many cases share a package, as its functions.
const TOGETHER: usize = 64;

/// The cases.
pub fn read() -> Vec<Value> {
    serde_json::from_str(include_str!("../ops.json")).unwrap()
}

/// Every case on every subject.
pub fn all(subjects: &[Subject]) {
    let cases = read();
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    // Only the newest opset has packages of several functions.
    let (new, old): (Vec<&Value>, Vec<&Value>) = cases.iter().partition(|c| c["opset"] == "CoreML8");
    for (n, group) in new.chunks(TOGETHER).chain(old.chunks(1)).enumerate() {
        let mut functions = Vec::new();
        let mut inputs = Vec::new();
        for (i, case) in group.iter().enumerate() {
            let name = if group.len() == 1 { "main".to_owned() } else { format!("case_{i:03}") };
            let (function, given) = build(case, &name).unwrap_or_else(|e| panic!("{}: {e}", described(case)));
            functions.push(function);
            inputs.push(given);
        }
        let program = validate(anemone_mil::program(functions, BTreeMap::new())).unwrap_or_else(|r| panic!("{r}"));
        let package = folder.path().join(format!("{n}.mlpackage"));
        anemone_mil::write(&program, &package).unwrap();
        for subject in subjects {
            let who = subject.runtime.describe();
            let model = subject.runtime.load(&package).unwrap_or_else(|e| panic!("{who}: {e}"));
            for (i, (case, given)) in group.iter().zip(&inputs).enumerate() {
                if subject.skips.contains(&case["op"].as_str().unwrap()) {
                    continue;
                }
                let found = match run(&*model, i, given) {
                    Ok(outputs) => outputs,
                    Err(e) => {
                        failures.push(format!("{who}: {}: {e}", described(case)));
                        continue;
                    }
                };
                let expected = case["outputs"].as_array().unwrap();
                assert_eq!(expected.len(), found.len(), "{}", described(case));
                for (value, found) in expected.iter().zip(&found) {
                    if let Some(what) = difference(case, &Given::of(value), found) {
                        failures.push(format!("{who}: {}: {what}", described(case)));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

/// The op, the shapes it is given, and its parameters.
fn described(case: &Value) -> String {
    let shapes: Vec<String> =
        case["inputs"].as_object().unwrap().iter().map(|(name, v)| format!("{name} {}", v["shape"])).collect();
    format!("{} of {}, {}", case["op"], shapes.join(", "), case["params"])
}

fn run(model: &dyn Model, function: usize, given: &[Given]) -> Result<Vec<Tensor>, anemone_exec::Error> {
    let inputs: Vec<Tensor> = given.iter().map(|g| g.tensor(model.float())).collect();
    model.run(function, &inputs.iter().collect::<Vec<_>>(), &mut model.new_state()?)
}
