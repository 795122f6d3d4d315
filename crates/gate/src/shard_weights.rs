//! A shard's own weights, dequantised, as the reference forward asks for them.
//!
//! The tight comparison runs the reference on exactly the numbers the shard holds, so that what remains is the program. The
//! weights are found by following each convolution of the package back to its constant; the convolution's name says which
//! projection it is. Rows are decoded as they are asked for: a shard of twenty layers in f32 would not fit where its int8 form does.
//! In an encoding whose rows cannot be told apart the whole matrix is decoded, and the last one kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anemone_bundle::Contract;
use anemone_mil::ir::{Arg, Op, ValueId};
use anemone_mil::{Valid, decode};
use anemone_reference::{Error, Part, Weight, Weights};

/// A matrix that a package stores: the weights whose rows follow one another in it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The name of the convolution that uses it.
    pub name: String,
    /// Its parts in order, with the rows of each.
    pub parts: Vec<(Weight, usize)>,
    /// The columns of each row.
    pub columns: usize,
    weight: ValueId,
}

/// Where a weight is: in which stored matrix, from which row on.
#[derive(Clone, Copy)]
struct Place {
    matrix: usize,
    first: usize,
    rows: usize,
}

/// The weights of one package.
pub struct ShardWeights {
    program: Arc<Valid>,
    function: usize,
    stored: Vec<Stored>,
    places: BTreeMap<Weight, Place>,
    /// Norms and biases.
    vectors: BTreeMap<Weight, Vec<f32>>,
    /// Where a head slice starts in the vocabulary.
    first_row: usize,
    last: Mutex<Option<(usize, Arc<Vec<f32>>)>>,
}

impl ShardWeights {
    /// Finds the weights that function number `function` uses. A head slice starts at `first_row` of the vocabulary.
    pub fn read(program: Arc<Valid>, function: usize, contract: &Contract, first_row: usize) -> Result<Self, String> {
        let (places, vectors, stored) = Default::default();
        let mut own = Self { program, function, stored, places, vectors, first_row, last: Mutex::new(None) };
        let program = Arc::clone(&own.program);
        for op in &program.functions[function].ops {
            if op.kind == "conv" {
                own.projection(op, contract)?;
            } else if let Some(norm) = op.name.strip_suffix("_norm_out") {
                let weight = match layer_part(norm) {
                    Some((n, "attn")) => Weight::Layer(n, Part::AttentionNorm),
                    Some((n, "ffn")) => Weight::Layer(n, Part::FfnNorm),
                    _ if norm == "output" => Weight::OutputNorm,
                    _ => continue,
                };
                if let Some(gamma) = own.constant(op, "y") {
                    let gamma = own.decode(gamma)?;
                    own.vectors.insert(weight, gamma);
                }
            }
        }
        Ok(own)
    }

    /// The matrices that the package stores, in the order of their use.
    pub fn stored(&self) -> &[Stored] {
        &self.stored
    }

    /// Norms and biases.
    pub fn vectors(&self) -> impl Iterator<Item = (Weight, usize)> {
        self.vectors.iter().map(|(&weight, values)| (weight, values.len()))
    }

    /// The constant that an op's parameter is bound to.
    fn constant(&self, op: &Op, param: &str) -> Option<ValueId> {
        let Some([Arg::Value(id)]) = op.inputs.get(param).map(Vec::as_slice) else { return None };
        let source = self.program.definition(self.function, *id)?;
        self.program.spec(self.function, source).is_constant().then_some(*id)
    }

    fn decode(&self, id: ValueId) -> Result<Vec<f32>, String> {
        let name = &self.program.functions[self.function].value(id).name;
        let source = self.program.definition(self.function, id).ok_or_else(|| format!("`{name}` is not a constant"))?;
        let call = self.program.call(self.function, source);
        let results = decode::results(&call).map_err(|e| format!("`{name}`: {e}"))?;
        results.into_iter().next().map(|dense| dense.values).ok_or_else(|| format!("`{name}` has no value"))
    }

    /// Files a projection, taken apart where it is fused, under what the reference calls it.
    fn projection(&mut self, op: &Op, c: &Contract) -> Result<(), String> {
        let Some(weight) = self.constant(op, "weight") else { return Ok(()) };
        let function = &self.program.functions[self.function];
        let shape = function.value(weight).ty.tensor().and_then(|t| t.fixed_shape()).unwrap_or_default();
        let [rows, columns, ..] = shape[..] else { return Err(format!("`{}`: a weight of shape {shape:?}", op.name)) };
        let parts = parts(&op.name, rows, c);
        let known: usize = parts.iter().map(|p| p.2).sum();
        if known != rows {
            return Err(format!("`{}` has {rows} rows, and the contract knows {known} of them", op.name));
        }
        let bias = self.constant(op, "bias").map(|id| self.decode(id)).transpose()?;
        let mut first = 0;
        for &(weight, bias_weight, rows) in &parts {
            self.places.insert(weight, Place { matrix: self.stored.len(), first, rows });
            if let (Some(bias), Some(weight)) = (&bias, bias_weight) {
                self.vectors.insert(weight, bias[first..first + rows].to_vec());
            }
            first += rows;
        }
        let parts = parts.into_iter().map(|(weight, _, rows)| (weight, rows)).collect();
        self.stored.push(Stored { name: op.name.clone(), parts, columns, weight });
        Ok(())
    }

    /// The elements of stored matrix `index`.
    fn matrix(&self, index: usize) -> Result<Arc<Vec<f32>>, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((kept, values)) if *kept == index => Ok(Arc::clone(values)),
            _ => {
                let values = Arc::new(self.decode(self.stored[index].weight)?);
                *last = Some((index, Arc::clone(&values)));
                Ok(values)
            }
        }
    }
}

/// `blk_3_attn` to layer 3 and `attn`.
pub(crate) fn layer_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk_")?.split_once('_')?;
    Some((layer.parse().ok()?, part))
}

/// What the rows of a projection are, with their biases; nothing for a name that is not known.
fn parts(name: &str, rows: usize, c: &Contract) -> Vec<(Weight, Option<Weight>, usize)> {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let Some((n, part)) = layer_part(name) else { return vec![(Weight::Head, None, rows)] };
    use Part::*;
    let parts: &[(Part, Part, usize)] = match part {
        "attn_qkv" => &[(Query, QueryBias, q), (Key, KeyBias, kv), (Value, ValueBias, kv)],
        "attn_q" => &[(Query, QueryBias, q)],
        "attn_k" => &[(Key, KeyBias, kv)],
        "attn_v" => &[(Value, ValueBias, kv)],
        "attn_output" => &[(Output, OutputBias, c.width)],
        "ffn_up" if rows == 2 * c.ffn => &[(Gate, GateBias, c.ffn), (Up, UpBias, c.ffn)],
        "ffn_gate" => &[(Gate, GateBias, c.ffn)],
        "ffn_up" => &[(Up, UpBias, c.ffn)],
        "ffn_down" => &[(Down, DownBias, c.width)],
        _ => &[],
    };
    let layer = |part| Weight::Layer(n, part);
    parts.iter().map(|&(part, bias, rows)| (layer(part), Some(layer(bias)), rows)).collect()
}

impl Weights for ShardWeights {
    fn row(&self, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error> {
        let fault = |problem: String| Error::Weight { weight, row, problem };
        let missing = || fault(format!("the shard has no such row of {} values", out.len()));
        if let Some(vector) = self.vectors.get(&weight) {
            if row != 0 || vector.len() != out.len() {
                return Err(missing());
            }
            out.copy_from_slice(vector);
            return Ok(());
        }
        let own = if weight == Weight::Head { row.checked_sub(self.first_row) } else { Some(row) };
        let place = self.places.get(&weight).zip(own).filter(|(place, own)| *own < place.rows);
        let (place, own) = place.ok_or_else(missing)?;
        let columns = self.stored[place.matrix].columns;
        if columns != out.len() {
            return Err(missing());
        }
        let start = (place.first + own) * columns;
        let source = self.program.definition(self.function, self.stored[place.matrix].weight);
        if source.is_some_and(|op| decode::elements(&self.program.call(self.function, op), start, out)) {
            return Ok(());
        }
        let matrix = self.matrix(place.matrix).map_err(fault)?;
        out.copy_from_slice(&matrix[start..start + columns]);
        Ok(())
    }
}
