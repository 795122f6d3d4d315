//! The model as a whole, and its pieces one by one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::slice;
use std::sync::{Arc, OnceLock};

use anemone_gguf::Gguf;

use crate::layer::{self, Terms, norm};
use crate::math::Linear;
use crate::weights::{Part, Size, Source, load_rows};
use crate::{Error, FactorSet, Form, Hyperparameters, Hypothesis, Pairing, Rope, Stage, Tap, Variant, Weight, Weights};

/// What the caller decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Positions that may be used. It also chooses between longrope's factors, so it has to be the context that the
    /// other side of a comparison was built for.
    pub context: usize,
    /// Whether dequantised weights stay in memory, four bytes each. Without, every call dequantises what it uses, a matrix at a time.
    pub keep_weights: bool,
}

impl Options {
    /// A context of `context` positions, weights kept.
    pub fn new(context: usize) -> Options {
        Options { context, keep_weights: true }
    }
}

/// A model ready to run.
pub struct Model {
    hyper: Hyperparameters,
    rope: Rope,
    other_factors: Option<(FactorSet, Rope)>,
    variant: Variant,
    weights: Arc<dyn Weights>,
    sizes: BTreeMap<Weight, Size>,
    options: Options,
    /// Those that stay, by their weight.
    kept: BTreeMap<Weight, OnceLock<Arc<Linear>>>,
}

/// Keys and values of the positions seen so far, for each layer.
#[derive(Debug, Clone)]
pub struct Cache {
    layers: Vec<LayerCache>,
    kv_rows: usize,
}

/// Position after position of `kv_heads * head_dim`; keys as rotated.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerCache {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl Cache {
    /// How many positions layer `layer` has seen. Zero for a layer that does not exist.
    pub fn positions(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |cache| cache.keys.len() / self.kv_rows)
    }

    /// The rotated keys of layer `layer`, `[positions, kv_heads * head_dim]`.
    pub fn keys(&self, layer: usize) -> &[f32] {
        self.layers.get(layer).map_or(&[], |cache| &cache.keys)
    }

    /// The values of layer `layer`, `[positions, kv_heads * head_dim]`.
    pub fn values(&self, layer: usize) -> &[f32] {
        self.layers.get(layer).map_or(&[], |cache| &cache.values)
    }

    /// Forgets all positions from `positions` on.
    pub fn truncate(&mut self, positions: usize) {
        let len = positions.saturating_mul(self.kv_rows);
        for cache in &mut self.layers {
            cache.keys.truncate(len);
            cache.values.truncate(len);
        }
    }
}

impl Model {
    /// Reads keys and checks every tensor. Weights are read later, where they are used.
    ///
    /// # Errors
    /// A missing or impossible key, an unknown architecture, a tensor that is missing, left over or of the wrong shape:
    /// each named.
    pub fn open(gguf: Arc<Gguf>, options: Options) -> Result<Model, Error> {
        let hyper = Hyperparameters::read(gguf.metadata(), options.context)?;
        if options.context == 0 || options.context > hyper.context {
            let key = format!("{}.context_length", hyper.architecture.name());
            let problem =
                format!("the model is made for {}, the context asked for is {}", hyper.context, options.context);
            return Err(Error::Key { key, problem });
        }
        let mut used = Vec::new();
        let (rope, other_factors) = Rope::read(&gguf, &hyper, options.context, &mut used)?;
        let source = Source::new(gguf, &hyper, used)?;
        let sizes = source.sizes();
        Ok(Model { other_factors, ..Model::assemble(hyper, rope, Arc::new(source), sizes, options) })
    }

    fn assemble(
        hyper: Hyperparameters,
        rope: Rope,
        weights: Arc<dyn Weights>,
        sizes: BTreeMap<Weight, Size>,
        options: Options,
    ) -> Model {
        let kept = if options.keep_weights {
            sizes.keys().map(|&weight| (weight, OnceLock::new())).collect()
        } else {
            BTreeMap::new()
        };
        Model { hyper, rope, other_factors: None, variant: Variant::DECLARED, weights, sizes, options, kept }
    }

    /// The same model on other weights. It asks for the weights that the file has, in the sizes that the file has.
    pub fn with_weights(&self, weights: Arc<dyn Weights>, form: Form) -> Model {
        let rope = match form {
            Form::Source => self.rope.clone(),
            Form::Shard => Rope { attention_factor: 1.0, pairing: Pairing::HalfSplit, ..self.rope.clone() },
        };
        Model::assemble(self.hyper.clone(), rope, weights, self.sizes.clone(), self.options)
    }

    /// What the model runs under: as the file says, unless it was put [`under`](Self::under) something else.
    pub fn hypothesis(&self) -> Hypothesis {
        Hypothesis { rope: self.rope.clone(), eps: self.hyper.eps, variant: self.variant }
    }

    /// The same weights under another contract. What this model has loaded, that one shares.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where more pairs turn than a head has.
    pub fn under(&self, hypothesis: Hypothesis) -> Result<Model, Error> {
        let Hypothesis { rope, eps, variant } = hypothesis;
        if 2 * rope.frequencies.len() > self.hyper.head_dim {
            let (pairs, dim) = (rope.frequencies.len(), self.hyper.head_dim);
            return Err(Error::Unsupported(format!("{pairs} rotary pairs in a head of {dim}")));
        }
        Ok(Model {
            hyper: Hyperparameters { eps, rope_dim: 2 * rope.frequencies.len(), ..self.hyper.clone() },
            rope,
            other_factors: self.other_factors.clone(),
            variant,
            weights: Arc::clone(&self.weights),
            sizes: self.sizes.clone(),
            options: self.options,
            kept: self.kept.clone(),
        })
    }

    pub(crate) fn terms(&self) -> Terms<'_> {
        Terms { hyper: &self.hyper, rope: &self.rope, variant: &self.variant }
    }

    /// What the keys say.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyper
    }

    /// The rotation in effect.
    pub fn rope(&self) -> &Rope {
        &self.rope
    }

    /// The rotation under the set of longrope's factors that the context does not call for, where the file has two: a neighbour
    /// to be tried, never what the model runs under.
    pub fn other_factors(&self) -> Option<(FactorSet, &Rope)> {
        self.other_factors.as_ref().map(|(set, rope)| (*set, rope))
    }

    /// The number of tokens: the rows of the embedding and of the head.
    pub fn vocabulary(&self) -> usize {
        self.sizes[&Weight::Embedding].rows
    }

    /// The weights that the model has: biases only where they exist, the head always. Sizes are rows and columns.
    pub fn weights(&self) -> impl Iterator<Item = (Weight, usize, usize)> {
        self.sizes.iter().map(|(&weight, size)| (weight, size.rows, size.cols))
    }

    /// Where the model's weights come from.
    pub fn source(&self) -> &Arc<dyn Weights> {
        &self.weights
    }

    /// A cache that has seen nothing.
    pub fn cache(&self) -> Cache {
        Cache { layers: vec![LayerCache::default(); self.hyper.layers], kv_rows: self.hyper.kv_rows() }
    }

    /// The embedding of each token, `[n, width]`.
    ///
    /// # Errors
    /// [`Error::Token`] for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, Error> {
        let mut out = vec![0.0; ids.len() * self.hyper.width];
        for (&token, out) in ids.iter().zip(out.chunks_exact_mut(self.hyper.width)) {
            if token as usize >= self.vocabulary() {
                return Err(Error::Token { token, vocabulary: self.vocabulary() });
            }
            self.weights.row(Weight::Embedding, token as usize, out)?;
            out.iter_mut().for_each(|v| *v *= self.variant.embedding_scale);
        }
        Ok(out)
    }

    /// Runs layers `range` on `hidden`, `[n, width]`, in place. Its rows stand at positions `position..position + n`;
    /// the layers must have seen all positions before, and forget what they have seen from `position` on.
    ///
    /// # Errors
    /// [`Error::Layers`], [`Error::Rows`], [`Error::Position`], or what the source of weights says.
    pub fn layer_range(
        &self,
        range: Range<usize>,
        hidden: &mut [f32],
        cache: &mut Cache,
        position: usize,
    ) -> Result<(), Error> {
        self.layer_range_tapped(range, hidden, cache, position, None)
    }

    /// As [`layer_range`](Self::layer_range), telling `tap` every [`Stage`] of every layer in the order of computation.
    ///
    /// # Errors
    /// As [`layer_range`](Self::layer_range).
    pub fn layer_range_tapped(
        &self,
        range: Range<usize>,
        hidden: &mut [f32],
        cache: &mut Cache,
        position: usize,
        tap: Option<&mut Tap<'_>>,
    ) -> Result<(), Error> {
        let tokens = self.rows(hidden)?;
        let seen = |n| cache.positions(n);
        if let Some(n) = range.clone().find(|&n| n < self.hyper.layers && seen(n) < position) {
            let problem = format!("layer {n} has seen {} positions", seen(n));
            return Err(Error::Position { position, tokens, problem });
        }
        let window = position..position.saturating_add(tokens);
        self.layer_windows(range, hidden, cache, slice::from_ref(&window), tap)
    }

    /// As [`layer_range_tapped`](Self::layer_range_tapped), on rows that stand in several windows of positions, which ascend.
    /// Positions that they leave out and that the layers have not seen count as zeros in their caches: what a runtime's fresh
    /// state holds, for who looks at a position without all that comes before it.
    ///
    /// # Errors
    /// As [`layer_range`](Self::layer_range), but for positions not seen.
    pub fn layer_windows(
        &self,
        range: Range<usize>,
        hidden: &mut [f32],
        cache: &mut Cache,
        windows: &[Range<usize>],
        mut tap: Option<&mut Tap<'_>>,
    ) -> Result<(), Error> {
        if range.start > range.end || range.end > self.hyper.layers || cache.layers.len() != self.hyper.layers {
            return Err(Error::Layers { range, count: self.hyper.layers });
        }
        let tokens = self.rows(hidden)?;
        let position = windows.first().map_or(0, |window| window.start);
        let refuse = |problem: String| Error::Position { position, tokens, problem };
        let ascend = windows.iter().all(|w| w.start <= w.end) && windows.is_sorted_by(|a, b| a.end <= b.start);
        if !ascend || windows.iter().map(ExactSizeIterator::len).sum::<usize>() != tokens {
            return Err(refuse(format!("the windows {windows:?} do not hold as many in ascending order")));
        }
        if windows.last().is_some_and(|window| window.end > self.options.context) {
            return Err(refuse(format!("the context is {}", self.options.context)));
        }
        for n in range {
            let cache = &mut cache.layers[n];
            cache.keys.truncate(position * self.hyper.kv_rows());
            cache.values.truncate(position * self.hyper.kv_rows());
            match tap.as_mut() {
                Some(tap) => {
                    let mut tell = |stage: Stage, rows: &[f32]| tap(n, stage, rows);
                    layer::run(self, n, hidden, cache, windows, Some(&mut tell))?;
                }
                None => layer::run(self, n, hidden, cache, windows, None)?,
            }
        }
        Ok(())
    }

    /// Logits of each row of `hidden`, `[n, width]`, giving `[n, vocabulary]`: norm, then head.
    ///
    /// # Errors
    /// [`Error::Rows`], or what the source of weights says.
    pub fn head(&self, hidden: &[f32]) -> Result<Vec<f32>, Error> {
        let vocabulary = self.vocabulary();
        if self.options.keep_weights {
            let whole = self.kept(Weight::Head, || self.head_slice(0..vocabulary))?;
            let mut logits = whole.apply(&self.output_norm(hidden)?);
            logits.iter_mut().for_each(|v| *v *= self.variant.logit_scale);
            return Ok(logits);
        }
        self.head_rows(hidden, 0..vocabulary)
    }

    /// The logits of the tokens in `range` alone, `[n, range]`: what a slice of the head computes.
    ///
    /// # Errors
    /// [`Error::Rows`], or what the source of weights says.
    pub fn head_rows(&self, hidden: &[f32], range: Range<usize>) -> Result<Vec<f32>, Error> {
        let normed = self.output_norm(hidden)?;
        let mut logits = vec![0.0; self.rows(hidden)? * range.len()];
        // In steps: the head of a large vocabulary alone is gigabytes in f32.
        for first in range.clone().step_by(4096) {
            let linear = self.head_slice(first..range.end.min(first + 4096))?;
            let part = linear.apply(&normed);
            for (logits, part) in logits.chunks_exact_mut(range.len()).zip(part.chunks_exact(linear.rows)) {
                logits[first - range.start..][..linear.rows].copy_from_slice(part);
            }
        }
        logits.iter_mut().for_each(|v| *v *= self.variant.logit_scale);
        Ok(logits)
    }

    fn head_slice(&self, range: Range<usize>) -> Result<Linear, Error> {
        let (rows, cols) = (range.len(), self.hyper.width);
        Ok(Linear { rows, cols, weight: load_rows(&*self.weights, Weight::Head, range, cols)?, bias: None })
    }

    fn output_norm(&self, hidden: &[f32]) -> Result<Vec<f32>, Error> {
        self.rows(hidden)?;
        let weight = load_rows(&*self.weights, Weight::OutputNorm, 0..1, self.hyper.width)?;
        Ok(norm(hidden, &weight, &self.terms()))
    }

    /// Runs all layers on `ids`, which follow what `cache` has seen, and gives the hidden rows before the head,
    /// `[n, width]`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`layer_range`](Self::layer_range).
    pub fn hidden(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, Error> {
        let position = cache.positions(0);
        let mut hidden = self.embed(ids)?;
        self.layer_range(0..self.hyper.layers, &mut hidden, cache, position)?;
        Ok(hidden)
    }

    /// Logits after each of `ids`, which follow what `cache` has seen: `[n, vocabulary]`.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn forward(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, Error> {
        self.head(&self.hidden(ids, cache)?)
    }

    /// Logits after the last of `ids` only, `[vocabulary]`: empty for no ids.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn forward_last(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, Error> {
        let hidden = self.hidden(ids, cache)?;
        self.head(&hidden[hidden.len().saturating_sub(self.hyper.width)..])
    }

    /// A matrix of layer `n` with its bias, where the model has one.
    pub(crate) fn linear(&self, n: usize, part: Part, bias: Part) -> Result<Arc<Linear>, Error> {
        let weight = Weight::Layer(n, part);
        self.kept(weight, || {
            let Size { rows, cols } = self.sizes[&weight];
            let bias = self.sizes.contains_key(&Weight::Layer(n, bias)).then(|| self.vector(n, bias)).transpose()?;
            Ok(Linear { rows, cols, weight: load_rows(&*self.weights, weight, 0..rows, cols)?, bias })
        })
    }

    /// A norm or bias of layer `n`.
    pub(crate) fn vector(&self, n: usize, part: Part) -> Result<Vec<f32>, Error> {
        let weight = Weight::Layer(n, part);
        load_rows(&*self.weights, weight, 0..1, self.sizes[&weight].cols)
    }

    /// A matrix that stays once it is loaded, if the weights do.
    fn kept(&self, weight: Weight, load: impl FnOnce() -> Result<Linear, Error>) -> Result<Arc<Linear>, Error> {
        let place = self.kept.get(&weight);
        if let Some(kept) = place.and_then(OnceLock::get) {
            return Ok(Arc::clone(kept));
        }
        let loaded = Arc::new(load()?);
        Ok(place.map_or_else(|| Arc::clone(&loaded), |place| Arc::clone(place.get_or_init(|| Arc::clone(&loaded)))))
    }

    fn rows(&self, hidden: &[f32]) -> Result<usize, Error> {
        let width = self.hyper.width;
        if hidden.len().is_multiple_of(width) {
            Ok(hidden.len() / width)
        } else {
            Err(Error::Rows { len: hidden.len(), width })
        }
    }
}
