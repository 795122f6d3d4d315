//! Where weights come from.
//!
//! The forward names weights by what they do, with fused projections taken apart, and asks a [`Weights`] for rows. The
//! file is one such source; a shard's own dequantised weights are another, so that the same forward can tell a wrong
//! program from a coarse quantisation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::thread;

use anemone_gguf::Gguf;

use crate::{Architecture, Error, Hyperparameters};

/// A weight of the model, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weight {
    /// The embedding, `[vocabulary, width]`.
    Embedding,
    /// The norm before the head, `[1, width]`.
    OutputNorm,
    /// The head, `[vocabulary, width]`. Asked for under this name even where it is the embedding.
    Head,
    /// A part of a layer.
    Layer(usize, Part),
}

/// A weight inside a layer. Vectors have one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The norm before attention, `[1, width]`.
    AttentionNorm,
    /// `[heads * head_dim, width]`
    Query,
    /// `[1, heads * head_dim]`, where the model has it.
    QueryBias,
    /// `[kv_heads * head_dim, width]`
    Key,
    /// `[1, kv_heads * head_dim]`, where the model has it.
    KeyBias,
    /// `[kv_heads * head_dim, width]`
    Value,
    /// `[1, kv_heads * head_dim]`, where the model has it.
    ValueBias,
    /// `[width, heads * head_dim]`
    Output,
    /// `[1, width]`, where the model has it.
    OutputBias,
    /// The norm before the feed-forward, `[1, width]`.
    FfnNorm,
    /// `[ffn, width]`, through the activation.
    Gate,
    /// `[1, ffn]`, where the model has it.
    GateBias,
    /// `[ffn, width]`
    Up,
    /// `[1, ffn]`, where the model has it.
    UpBias,
    /// `[width, ffn]`
    Down,
    /// `[1, width]`, where the model has it.
    DownBias,
}

/// The name under which llama.cpp stores the weight unfused.
impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Weight::Embedding => f.write_str("token_embd.weight"),
            Weight::OutputNorm => f.write_str("output_norm.weight"),
            Weight::Head => f.write_str("output.weight"),
            Weight::Layer(n, part) => {
                let name = match part {
                    Part::AttentionNorm => "attn_norm.weight",
                    Part::Query => "attn_q.weight",
                    Part::QueryBias => "attn_q.bias",
                    Part::Key => "attn_k.weight",
                    Part::KeyBias => "attn_k.bias",
                    Part::Value => "attn_v.weight",
                    Part::ValueBias => "attn_v.bias",
                    Part::Output => "attn_output.weight",
                    Part::OutputBias => "attn_output.bias",
                    Part::FfnNorm => "ffn_norm.weight",
                    Part::Gate => "ffn_gate.weight",
                    Part::GateBias => "ffn_gate.bias",
                    Part::Up => "ffn_up.weight",
                    Part::UpBias => "ffn_up.bias",
                    Part::Down => "ffn_down.weight",
                    Part::DownBias => "ffn_down.bias",
                };
                write!(f, "blk.{n}.{name}")
            }
        }
    }
}

/// A source of weights.
pub trait Weights: Send + Sync {
    /// Writes row `row` of `weight` into `out`, which has the row's length.
    ///
    /// Only weights that the model's file has are asked for: a bias that is not there never is.
    ///
    /// # Errors
    /// [`Error::Weight`] where the source cannot give it.
    fn row(&self, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error>;
}

/// Below this many elements a thread costs more than it brings.
const ELEMENTS_PER_THREAD: usize = 1 << 20;

/// Rows `rows` of a matrix, read by all cores: `[rows, cols]`.
pub(crate) fn load_rows(
    weights: &dyn Weights,
    weight: Weight,
    rows: Range<usize>,
    cols: usize,
) -> Result<Vec<f32>, Error> {
    let mut out = vec![0.0; rows.len() * cols];
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let each = rows.len().div_ceil((out.len() / ELEMENTS_PER_THREAD).clamp(1, cores)).max(1);
    let read = |first: usize, part: &mut [f32]| {
        part.chunks_exact_mut(cols).zip(first..).try_for_each(|(out, row)| weights.row(weight, row, out))
    };
    thread::scope(|scope| {
        let mut parts = out.chunks_mut(each * cols).zip(rows.step_by(each));
        let Some((own, first)) = parts.next() else { return Ok(()) };
        let others: Vec<_> = parts.map(|(part, first)| scope.spawn(move || read(first, part))).collect();
        let mut done = read(first, own);
        for other in others {
            done = done.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    })?;
    Ok(out)
}

/// How the q and k rows of a source are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As in the model's file: pairs as its architecture stores them, the attention factor not yet applied.
    Source,
    /// As in a shard: half-split pairs, the attention factor folded into the rotary rows of q and k.
    Shard,
}

/// Rows and columns of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub rows: usize,
    pub cols: usize,
}

/// Where a weight is in the file: some rows of a matrix, or some elements of a vector.
#[derive(Debug, Clone)]
struct Place {
    tensor: String,
    first: usize,
    size: Size,
}

/// The file as a source, with the shape of everything checked.
#[derive(Debug)]
pub(crate) struct Source {
    gguf: Arc<Gguf>,
    places: BTreeMap<Weight, Place>,
}

/// A tensor that the architecture has, and the weights that follow one another in it.
struct Stored {
    name: String,
    parts: Vec<(Weight, usize)>,
    /// The columns of a matrix, whose parts are counted in rows; `None` for a vector, whose parts are in elements.
    cols: Option<usize>,
    required: bool,
    /// What its size follows from.
    because: &'static str,
}

/// The tensors outside the layers. A model without a head of its own uses the embedding.
fn outer_tensors(h: &Hyperparameters, vocabulary: usize, tied: bool) -> Vec<Stored> {
    let matrix = |name: &str, weight| Stored {
        name: name.to_owned(),
        parts: vec![(weight, vocabulary)],
        cols: Some(h.width),
        required: true,
        because: "the vocabulary, which is the embedding's, and the width",
    };
    let output_norm = Stored {
        name: "output_norm.weight".to_owned(),
        parts: vec![(Weight::OutputNorm, h.width)],
        cols: None,
        required: true,
        because: "the width",
    };
    let head = if tied { "token_embd.weight" } else { "output.weight" };
    vec![matrix("token_embd.weight", Weight::Embedding), matrix(head, Weight::Head), output_norm]
}

/// The tensors of layer `n`: this is all that an architecture's storage comes to.
fn layer_tensors(h: &Hyperparameters, n: usize) -> Vec<Stored> {
    let (q, kv) = (h.q_rows(), h.kv_rows());
    let stored = |name: &str, parts: &[(Part, usize)], cols, required, because| Stored {
        name: format!("blk.{n}.{name}"),
        parts: parts.iter().map(|&(part, size)| (Weight::Layer(n, part), size)).collect(),
        cols,
        required,
        because,
    };
    let norm = |name: &str, part| stored(name, &[(part, h.width)], None, true, "the width");
    let matrix = |name: &str, parts: &[_], cols, because| stored(name, parts, Some(cols), true, because);
    let bias = |name: &str, parts: &[_]| stored(name, parts, None, false, "the rows of its projection");

    let mut tensors = vec![
        norm("attn_norm.weight", Part::AttentionNorm),
        norm("ffn_norm.weight", Part::FfnNorm),
        matrix("attn_output.weight", &[(Part::Output, h.width)], q, "the width, and all query heads"),
        bias("attn_output.bias", &[(Part::OutputBias, h.width)]),
        matrix("ffn_down.weight", &[(Part::Down, h.width)], h.ffn, "the width, and the feed-forward's"),
        bias("ffn_down.bias", &[(Part::DownBias, h.width)]),
    ];
    match h.architecture {
        Architecture::Llama => tensors.extend([
            matrix("attn_q.weight", &[(Part::Query, q)], h.width, "all query heads, and the width"),
            bias("attn_q.bias", &[(Part::QueryBias, q)]),
            matrix("attn_k.weight", &[(Part::Key, kv)], h.width, "all key heads, and the width"),
            bias("attn_k.bias", &[(Part::KeyBias, kv)]),
            matrix("attn_v.weight", &[(Part::Value, kv)], h.width, "all value heads, and the width"),
            bias("attn_v.bias", &[(Part::ValueBias, kv)]),
            matrix("ffn_gate.weight", &[(Part::Gate, h.ffn)], h.width, "the feed-forward's width, and the model's"),
            bias("ffn_gate.bias", &[(Part::GateBias, h.ffn)]),
            matrix("ffn_up.weight", &[(Part::Up, h.ffn)], h.width, "the feed-forward's width, and the model's"),
            bias("ffn_up.bias", &[(Part::UpBias, h.ffn)]),
        ]),
        Architecture::Phi3 => {
            let qkv = |q_part, k_part, v_part| [(q_part, q), (k_part, kv), (v_part, kv)];
            let gate_up = |gate, up| [(gate, h.ffn), (up, h.ffn)];
            let heads = "all heads of q, then k, then v, and the width";
            let twice = "gate rows, then up rows, and the width";
            tensors.extend([
                matrix("attn_qkv.weight", &qkv(Part::Query, Part::Key, Part::Value), h.width, heads),
                bias("attn_qkv.bias", &qkv(Part::QueryBias, Part::KeyBias, Part::ValueBias)),
                matrix("ffn_up.weight", &gate_up(Part::Gate, Part::Up), h.width, twice),
                bias("ffn_up.bias", &gate_up(Part::GateBias, Part::UpBias)),
            ]);
        }
    }
    tensors
}

impl Source {
    /// Finds every weight, checks every shape against the keys, and refuses tensors that are left over. `used` are
    /// names already accounted for.
    pub fn new(gguf: Arc<Gguf>, h: &Hyperparameters, used: Vec<String>) -> Result<Source, Error> {
        let mut used: BTreeSet<String> = used.into_iter().collect();
        let mut places = BTreeMap::new();
        let vocabulary = gguf.tensor("token_embd.weight")?.rows();
        let tied = gguf.find("output.weight").is_none();
        // Layer by layer, not all first: a number of layers that the file does not have ends at the first missing.
        let layers = (0..h.layers).flat_map(|n| layer_tensors(h, n));
        for Stored { name, parts, cols, required, because } in
            outer_tensors(h, vocabulary, tied).into_iter().chain(layers)
        {
            let Some(tensor) = gguf.find(&name) else {
                if required {
                    return Err(anemone_gguf::Error::MissingTensor { name }.into());
                }
                continue;
            };
            let total = parts.iter().map(|(_, size)| size).sum();
            let expected = cols.map_or(vec![total], |cols| vec![total, cols]);
            if tensor.shape() != expected {
                return Err(Error::Shape { name, found: tensor.shape().to_vec(), expected, because });
            }
            let mut first = 0;
            for (weight, size) in parts {
                let shape = cols.map_or(Size { rows: 1, cols: size }, |cols| Size { rows: size, cols });
                places.insert(weight, Place { tensor: name.clone(), first, size: shape });
                first += size;
            }
            used.insert(name);
        }
        if let Some(left) = gguf.tensors().iter().find(|tensor| !used.contains(&tensor.name)) {
            let architecture = h.architecture.name();
            return Err(Error::UnexpectedTensor { name: left.name.clone(), architecture });
        }
        Ok(Source { gguf, places })
    }

    /// The sizes of the weights that the model has.
    pub fn sizes(&self) -> BTreeMap<Weight, Size> {
        self.places.iter().map(|(&weight, place)| (weight, place.size)).collect()
    }
}

impl Weights for Source {
    fn row(&self, weight: Weight, row: usize, out: &mut [f32]) -> Result<(), Error> {
        let refuse = |problem: &str| Error::Weight { weight, row, problem: problem.to_owned() };
        let place = self.places.get(&weight).ok_or_else(|| refuse("the model does not have it"))?;
        if row >= place.size.rows || out.len() != place.size.cols {
            return Err(refuse("out of range"));
        }
        let tensor = self.gguf.tensor(&place.tensor)?;
        match tensor.shape() {
            [_] => out.copy_from_slice(&tensor.dequantize()[place.first..][..out.len()]),
            _ => tensor.dequantize_row(place.first + row, out)?,
        }
        Ok(())
    }
}
