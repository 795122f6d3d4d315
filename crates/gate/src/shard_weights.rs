//! A shard's own weights, dequantised, as the reference forward asks for them.
//!
//! The tight comparison runs the reference on exactly the numbers the shard holds, so that what remains is the program. The
//! weights are found by following each convolution of the package back to its constant; the convolution's name says which
//! projection it is.

use std::collections::BTreeMap;

use anemone_bundle::Contract;
use anemone_mil::ir::{Arg, Op};
use anemone_mil::{Valid, decode};
use anemone_reference::{Error, Part, Weight, Weights};

/// Rows of one weight.
struct Matrix {
    columns: usize,
    values: Vec<f32>,
}

/// The weights of one package.
pub struct ShardWeights {
    weights: BTreeMap<Weight, Matrix>,
    /// Where a head slice starts in the vocabulary.
    first_row: usize,
}

impl ShardWeights {
    /// Reads the weights that function number `function` uses. A head slice starts at `first_row` of the vocabulary.
    pub fn read(program: &Valid, function: usize, contract: &Contract, first_row: usize) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        let constant = |op: &Op, param: &str| -> Result<Option<Vec<f32>>, String> {
            let Some([Arg::Value(id)]) = op.inputs.get(param).map(Vec::as_slice) else { return Ok(None) };
            let Some(source) = program.definition(function, *id) else { return Ok(None) };
            if !program.spec(function, source).is_constant() {
                return Ok(None);
            }
            let results = decode::results(&program.call(function, source)).map_err(|e| format!("`{}`: {e}", op.name))?;
            Ok(results.into_iter().next().map(|dense| dense.values))
        };
        let ops = &program.functions[function].ops;
        for op in ops {
            if op.kind == "conv" {
                let Some(weight) = constant(op, "weight")? else { continue };
                let bias = constant(op, "bias")?;
                place(&mut all, &op.name, weight, bias, contract);
            } else if let Some(norm) = op.name.strip_suffix("_norm_out") {
                let Some(gamma) = constant(op, "y")? else { continue };
                let weight = match layer_part(norm) {
                    Some((n, "attn")) => Weight::Layer(n, Part::AttentionNorm),
                    Some((n, "ffn")) => Weight::Layer(n, Part::FfnNorm),
                    _ if norm == "output" => Weight::OutputNorm,
                    _ => continue,
                };
                all.insert(weight, Matrix { columns: gamma.len(), values: gamma });
            }
        }
        Ok(Self { weights: all, first_row })
    }
}

/// `blk_3_attn` to layer 3 and `attn`.
fn layer_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk_")?.split_once('_')?;
    Some((layer.parse().ok()?, part))
}

/// Files a projection, taken apart where it is fused, under what the reference calls it.
fn place(
    all: &mut BTreeMap<Weight, Matrix>,
    name: &str,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    c: &Contract,
) {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let Some((n, part)) = layer_part(name) else {
        all.insert(Weight::Head, Matrix { columns: c.width, values: weight });
        return;
    };
    use Part::*;
    let parts: &[(Part, Part, usize)] = match part {
        "attn_qkv" => &[(Query, QueryBias, q), (Key, KeyBias, kv), (Value, ValueBias, kv)],
        "attn_q" => &[(Query, QueryBias, q)],
        "attn_k" => &[(Key, KeyBias, kv)],
        "attn_v" => &[(Value, ValueBias, kv)],
        "attn_output" => &[(Output, OutputBias, c.width)],
        "ffn_up" if weight.len() == 2 * c.ffn * c.width => &[(Gate, GateBias, c.ffn), (Up, UpBias, c.ffn)],
        "ffn_gate" => &[(Gate, GateBias, c.ffn)],
        "ffn_up" => &[(Up, UpBias, c.ffn)],
        "ffn_down" => &[(Down, DownBias, c.width)],
        _ => &[],
    };
    let rows: usize = parts.iter().map(|p| p.2).sum();
    let columns = weight.len() / rows.max(1);
    let mut first = 0;
    for &(part, bias_part, rows) in parts {
        let values = weight[first * columns..(first + rows) * columns].to_vec();
        all.insert(Weight::Layer(n, part), Matrix { columns, values });
        if let Some(bias) = &bias {
            let values = bias[first..first + rows].to_vec();
            all.insert(Weight::Layer(n, bias_part), Matrix { columns: rows, values });
        }
        first += rows;
    }
}

impl Weights for ShardWeights {
    fn row(&self, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error> {
        let missing = |problem: String| Error::Weight { weight, row, problem };
        let matrix = self.weights.get(&weight).ok_or_else(|| missing("the shard has no such weight".into()))?;
        let own = if weight == Weight::Head { row.checked_sub(self.first_row) } else { Some(row) };
        let found = own.and_then(|row| matrix.values.chunks_exact(matrix.columns).nth(row)).filter(|r| r.len() == out.len());
        out.copy_from_slice(found.ok_or_else(|| missing(format!("the shard has no row {row} of {} values", out.len())))?);
        Ok(())
    }
}
