//! The weights of one package. Its functions ask here for theirs and get clones of the same literals, which is how the
//! package comes to hold one copy of them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anemone_bundle::contract::WeightMode;
use anemone_mil::ir::Literal;

use crate::model::Model;
use crate::weights::{Row, Rows, Scales};

/// A projection as its mode stores it.
#[derive(Clone)]
pub enum Weight {
    /// fp16 `[out, in, 1, 1]`.
    Fp16(Literal),
    /// int8 `[out, in, 1, 1]` and fp16 scales that broadcast over it.
    Int8 {
        /// The integers.
        data: Literal,
        /// One scale, or one an output channel.
        scale: Literal,
    },
}

/// The literals handed out so far, by tensor.
#[derive(Default)]
pub struct Pool {
    weights: Mutex<BTreeMap<String, Weight>>,
    vectors: Mutex<BTreeMap<String, Literal>>,
}

// The structure check has found every tensor that a block asks for, with its shape; what it has not seen is a defect here.
const CHECKED: &str = "tensor found by the structure check";

impl Pool {
    /// The rows `rows` of a projection. A package holds one projection of a tensor at most.
    pub fn weight(&self, model: &Model, tensor: &str, rows: &dyn Fn() -> Vec<Row>) -> Weight {
        let mut weights = self.weights.lock().unwrap_or_else(|e| e.into_inner());
        let make = || {
            let rows = Rows::new(&model.source, tensor, rows()).expect(CHECKED);
            let int8 = |rows: Rows, scales| {
                let (data, scale) = rows.int8(scales);
                Weight::Int8 { data, scale }
            };
            match model.contract.weights {
                WeightMode::Fp16 => Weight::Fp16(rows.fp16()),
                WeightMode::Int8 => int8(rows, Scales::PerTensor),
                WeightMode::Int8Channel => int8(rows, Scales::PerChannel),
            }
        };
        weights.entry(tensor.to_owned()).or_insert_with(make).clone()
    }

    /// A small tensor in fp16, with `shape`: norms stay fp16 in every mode.
    pub fn vector(&self, model: &Model, tensor: &str, shape: &[usize]) -> Literal {
        let make = || Literal::f16s(shape, &model.source.tensor(tensor).expect(CHECKED).dequantize());
        self.vectors.lock().unwrap_or_else(|e| e.into_inner()).entry(tensor.to_owned()).or_insert_with(make).clone()
    }

    /// The bias that belongs to the rows of a projection: permuted and scaled as they are.
    pub fn bias(&self, model: &Model, tensor: &str, rows: &dyn Fn() -> Vec<Row>) -> Literal {
        let make = || {
            let bias = model.source.tensor(tensor).expect(CHECKED).dequantize();
            let rows: Vec<f32> = rows().iter().map(|r| bias[r.index] * r.gain).collect();
            Literal::f16s(&[rows.len()], &rows)
        };
        self.vectors.lock().unwrap_or_else(|e| e.into_inner()).entry(tensor.to_owned()).or_insert_with(make).clone()
    }
}
