//! A bundle, loaded: its shards in order on one runtime, refused unless every part carries the manifest's contract.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anemone_bundle::{Contract, Manifest, layout, manifest};
use anemone_exec::{self as exec, Call, Dtype, Model, Port, Rows, Runtime, Signature, State, Tensor};
use memmap2::Mmap;

use crate::draft::Drafts;
use crate::host::{self, HostInputs};

/// Why a bundle could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest, or a file it lists.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// A file of the bundle could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A shard is not the one the manifest speaks of.
    #[error("{}: {reason}; rebuild the bundle from one source", path.display())]
    Shard {
        /// The package.
        path: PathBuf,
        /// How it differs.
        reason: String,
    },
    /// The runtime refused or failed.
    #[error(transparent)]
    Runtime(#[from] exec::Error),
    /// A session whose last call failed.
    #[error("this session failed before, and what it holds is not known; begin a new one")]
    Failed,
    /// A token that the vocabulary does not have.
    #[error("token {id} is outside the vocabulary of {vocab}")]
    Token {
        /// The token.
        id: u32,
        /// Tokens of the model.
        vocab: usize,
    },
    /// More tokens than the cache has rows for.
    #[error("{asked} tokens do not fit: the bundle's context is {context} and {used} positions are used")]
    ContextFull {
        /// Tokens to be added.
        asked: usize,
        /// Positions in use.
        used: usize,
        /// Positions of the cache.
        context: usize,
    },
}

/// Told the name of a shard's input or value, and the value.
pub type Watch<'a> = dyn FnMut(&str, &Tensor) + 'a;

/// One loaded package, or a part of one, with its functions found.
pub struct Shard {
    model: Box<dyn Model>,
    /// For each token count of the manifest, the function and the order of its inputs.
    functions: Vec<Function>,
}

impl Shard {
    /// Finds the functions of a model that takes what the shards of a bundle take, and gives `[1, width, T, 1]`.
    fn of(model: Box<dyn Model>, manifest: &Manifest, width: usize) -> Result<Self, String> {
        let functions = manifest.tokens.iter().map(|&t| function(model.as_ref(), t, &manifest.contract, width));
        let functions = functions.collect::<Result<_, _>>()?;
        Ok(Self { model, functions })
    }

    /// A fresh state.
    pub fn new_state(&self) -> Result<State, Error> {
        Ok(self.model.new_state()?)
    }

    /// What function `function` is given, in its order: the interface knows five inputs.
    fn given<'a>(&self, function: &Function, x: &'a Tensor, host: &'a HostInputs) -> [&'a Tensor; 5] {
        let mut inputs = [x; 5];
        inputs.iter_mut().zip(&function.inputs).for_each(|(input, name)| *input = host.get(name).unwrap_or(x));
        inputs
    }

    /// The shard's one output; `watch`, where there is one, is told what is given and each value computed.
    fn call(
        &self,
        function: usize,
        x: &Tensor,
        host: &HostInputs,
        state: &mut State,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Tensor, exec::Error> {
        let function = &self.functions[function];
        let inputs = &self.given(function, x, host)[..function.inputs.len()];
        let mut outputs = match watch {
            Some(watch) => {
                function.inputs.iter().zip(inputs).for_each(|(name, value)| watch(name, value));
                self.model.run_watched(function.index, inputs, state, watch)?
            }
            None => self.model.run(function.index, inputs, state)?,
        };
        Ok(outputs.swap_remove(0))
    }

    /// As [`call`](Self::call), in memory that is there.
    fn call_into(
        &self,
        function: usize,
        x: &Tensor,
        host: &HostInputs,
        state: &mut State,
        out: &mut Tensor,
    ) -> Result<(), exec::Error> {
        let function = &self.functions[function];
        let inputs = &self.given(function, x, host)[..function.inputs.len()];
        self.model.run_into(function.index, inputs, state, std::slice::from_mut(out))
    }
}

struct Function {
    index: usize,
    inputs: Vec<String>,
}

/// How many tokens a call of shards takes that are called with the same ones.
#[derive(Clone, Copy)]
struct Tokens {
    /// As the manifest says.
    declared: usize,
    /// At most, where the runtime does not mind the number.
    most: Option<usize>,
}

impl Tokens {
    /// Of each function of these shards.
    fn of(shards: &[Shard], manifest: &Manifest) -> Vec<Self> {
        let most = |f: usize| shards.iter().map(|s| s.model.most_tokens(s.functions[f].index)).min().flatten();
        manifest.tokens.iter().enumerate().map(|(f, &declared)| Self { declared, most: most(f) }).collect()
    }
}

/// A loaded bundle. Shared by its sessions.
pub struct Engine {
    manifest: Manifest,
    layers: Vec<Shard>,
    layer_tokens: Vec<Tokens>,
    head: Vec<Shard>,
    head_tokens: Vec<Tokens>,
    /// Whether the head's slices are submitted together.
    head_overlaps: bool,
    embedding: Mmap,
    /// Of the rotation, inverse.
    frequencies: Vec<f64>,
    float: Dtype,
    drafts: Drafts,
}

impl Engine {
    /// Loads every package of the bundle in `folder` on `runtime`. Hashes are not verified here: that is a gate's work.
    pub fn open(folder: &Path, runtime: &dyn Runtime) -> Result<Self, Error> {
        let manifest = Manifest::open(folder)?;
        let load = |shard: &manifest::Shard, role: String, width: usize| {
            let path = folder.join(&shard.path);
            let model = runtime.load(&path)?;
            check(&manifest, model.as_ref(), &role).map_err(|reason| Error::Shard { path: path.clone(), reason })?;
            Shard::of(model, &manifest, width).map_err(|reason| Error::Shard { path, reason })
        };
        let layers = |s| load(s, layout::layers_role(&s.range()), manifest.contract.width);
        let layers: Vec<Shard> = manifest.layers.iter().map(layers).collect::<Result<_, _>>()?;
        let head = |s| load(s, layout::head_role(&s.range()), s.range().len());
        let head: Vec<Shard> = manifest.head.iter().map(head).collect::<Result<_, _>>()?;
        let path = folder.join(layout::EMBEDDING);
        let embedding = map(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let expected = 2 * manifest.contract.vocab as u64 * manifest.contract.width as u64;
        if embedding.len() as u64 != expected {
            let reason =
                format!("is {} bytes, and the contract's vocabulary and width make {expected}", embedding.len());
            return Err(manifest::Error::File { path, reason }.into());
        }
        let float = layers[0].model.float();
        let frequencies = manifest.contract.inverse_frequencies();
        let head_overlaps = head.iter().all(|slice| slice.model.overlaps());
        let mut engine = Self {
            layer_tokens: Tokens::of(&layers, &manifest),
            head_tokens: Tokens::of(&head, &manifest),
            manifest,
            layers,
            head,
            head_overlaps,
            embedding,
            frequencies,
            float,
            drafts: Drafts::Never,
        };
        if engine.takes_any_number() {
            engine.drafts = Drafts::Measured;
        }
        Ok(engine)
    }

    /// Whether its runtime takes a call of any number of tokens through the bundle's function of several, and pads nothing.
    /// Drafts gain time there alone, and there alone are they made where nobody says otherwise: of a runtime that is not ours it
    /// is not known that a token's logits are the same bits through both functions, which is what drafts rest on.
    pub fn takes_any_number(&self) -> bool {
        let any = |functions: &[Tokens]| functions.last().is_some_and(|tokens| tokens.most.is_some());
        self.manifest.tokens.len() > 1 && any(&self.layer_tokens) && any(&self.head_tokens)
    }

    /// The same engine with drafts made so; without a function of several tokens there are none.
    pub fn with_drafts(mut self, drafts: Drafts) -> Self {
        self.drafts = if self.manifest.tokens.len() > 1 { drafts } else { Drafts::Never };
        self
    }

    /// Whether answers are drafted ahead.
    pub fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bundle's contract.
    pub fn contract(&self) -> &Contract {
        &self.manifest.contract
    }

    /// The most tokens that one call of the shards takes: what a host that takes turns feeds at a time.
    pub fn block_tokens(&self) -> usize {
        self.manifest.tokens.last().copied().unwrap_or(1)
    }

    /// How many of `left` tokens one call of the layer shards takes.
    pub fn call_tokens(&self, left: usize) -> usize {
        block(&self.layer_tokens, left).1.min(left)
    }

    /// Bytes of one session's caches: keys and values of every layer and position, at the four bytes an element that the
    /// widest runtime keeps.
    pub fn session_bytes(&self) -> usize {
        let c = self.contract();
        2 * 4 * c.layers * c.kv_heads * c.head_dim * c.context
    }

    /// Calls every function of every shard and slice, and each package twice at least, on a session that is thrown away, so that no
    /// request pays for what only first calls do: memory that is touched, plans and kernels that are made, weights that are copied
    /// before a second call. Returns how long it took. Core ML's own first calls are made when it loads, and told by it.
    pub fn warm_up(&self) -> Result<Duration, Error> {
        let start = Instant::now();
        let mut session = self.session()?;
        let tokens = &self.manifest.tokens;
        for &tokens in tokens.iter().cycle().take(tokens.len().max(2)) {
            session.truncate(0);
            session.feed(&vec![0; tokens.min(self.contract().context)], Logits::All)?;
        }
        Ok(start.elapsed())
    }

    /// A new conversation: empty caches, position 0.
    pub fn session(&self) -> Result<Session<'_>, Error> {
        let states = |shards: &[Shard]| shards.iter().map(|s| s.model.new_state()).collect::<Result<_, _>>();
        Ok(Session {
            engine: self,
            states: states(&self.layers)?,
            head_states: states(&self.head)?,
            position: 0,
            layer_calls: Vec::new(),
            head_calls: Vec::new(),
            rows: Vec::new(),
            stages: Stages::default(),
            shard_times: vec![Duration::ZERO; self.layers.len()],
        })
    }

    /// The float type in which shards take and give activations on this runtime.
    pub fn float(&self) -> Dtype {
        self.float
    }

    /// Rows of the bundle's embedding table as the first shard gets them: `[ids, width]`.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, Error> {
        let c = self.contract();
        match ids.iter().find(|&&id| id as usize >= c.vocab) {
            Some(&id) => Err(Error::Token { id, vocab: c.vocab }),
            None => Ok(host::embed(c, &self.embedding, ids)),
        }
    }

    /// Layer shard number `shard`.
    pub fn shard(&self, shard: usize) -> &Shard {
        &self.layers[shard]
    }

    /// Layers that were cut out of the package at `path`, as a shard of their own.
    pub fn part(&self, path: &Path, model: Box<dyn Model>) -> Result<Shard, Error> {
        Shard::of(model, &self.manifest, self.contract().width)
            .map_err(|reason| Error::Shard { path: path.to_owned(), reason })
    }

    /// One call of a layer shard alone: hidden rows `[n, width]` at `position..` through the function of
    /// `self.manifest().tokens[function]` tokens, of which n at most. What a gate judges; `watch`, where there is one, is
    /// told the inputs and what the runtime can tell of the values between.
    pub fn run(
        &self,
        shard: &Shard,
        function: usize,
        rows: &[f32],
        position: usize,
        state: &mut State,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<Vec<f32>, Error> {
        let (c, tokens) = (self.contract(), self.manifest.tokens[function]);
        let n = rows.len() / c.width;
        let host = HostInputs::new(c, position, n, tokens, self.float);
        let x = host::to_columns(rows, c.width, tokens, self.float);
        Ok(host::to_rows(&shard.call(function, &x, &host, state, watch)?, n))
    }

    /// Logits of `rows[n, width]` of the last hidden state: `[n, vocab]`.
    pub fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, Error> {
        let mut states = self.head.iter().map(|s| s.model.new_state()).collect::<Result<Vec<_>, _>>()?;
        let mut logits = Rows::default();
        self.head(Hidden::Rows(rows), &mut states, &mut Vec::new(), &mut logits)?;
        Ok(logits.into_values())
    }

    /// As [`logits`](Self::logits), in memory that is there. Returns how long the slices took.
    fn head(
        &self,
        hidden: Hidden<'_>,
        states: &mut [State],
        calls: &mut Vec<HeadCall>,
        logits: &mut Rows,
    ) -> Result<Duration, Error> {
        let (width, vocab) = (self.contract().width, self.contract().vocab);
        let n = match hidden {
            Hidden::Rows(rows) => rows.len() / width,
            Hidden::Column(_) => 1,
        };
        logits.begin(n, vocab);
        let (mut done, mut took) = (0, Duration::ZERO);
        while done < n {
            let (function, tokens) = block(&self.head_tokens, n - done);
            let len = tokens.min(n - done);
            let call = kept(
                calls,
                |call| call.x.shape()[2] == tokens,
                || {
                    let part = |slice: &manifest::Shard| host::blank(slice.range().len(), tokens, self.float);
                    let parts = self.manifest.head.iter().filter(|_| self.head_overlaps).map(part).collect();
                    HeadCall { x: host::blank(width, tokens, self.float), parts }
                },
            );
            let x = match hidden {
                Hidden::Column(column) => column,
                Hidden::Rows(rows) => {
                    host::set_columns(&mut call.x, &rows[done * width..(done + len) * width]);
                    &call.x
                }
            };
            let inputs = [x];
            let slices = self.head.iter().zip(states.iter_mut());
            let starts = self.manifest.head.iter().map(|slice| slice.range().start);
            let start = Instant::now();
            if self.head_overlaps {
                let calls = slices.zip(&mut call.parts).map(|((shard, state), output)| {
                    let model = shard.model.as_ref();
                    Call { model, function: shard.functions[function].index, inputs: &inputs, state, output }
                });
                exec::together(calls)?;
                took += start.elapsed();
                starts.zip(&call.parts).for_each(|(from, part)| logits.put_tokens(done, from, part));
            } else {
                for ((shard, state), from) in slices.zip(starts) {
                    let function = shard.functions[function].index;
                    shard.model.run_rows(function, &inputs, state, logits, done, from)?;
                }
                took += start.elapsed();
            }
            done += len;
        }
        Ok(took)
    }
}

/// Which function takes `left` tokens best, and how many it takes. One token alone goes through `main`; a runtime that does not
/// mind the number is given no padding.
fn block(functions: &[Tokens], left: usize) -> (usize, usize) {
    let function = if left > 1 { functions.len() - 1 } else { 0 };
    let Tokens { declared, most } = functions[function];
    (function, most.map_or(declared, |most| left.min(most)))
}

/// One conversation: the shards' caches and how far they are filled.
pub struct Session<'e> {
    engine: &'e Engine,
    states: Vec<State>,
    head_states: Vec<State>,
    position: usize,
    layer_calls: Vec<LayerCall>,
    head_calls: Vec<HeadCall>,
    /// Rows of the last hidden state that logits are wanted of.
    rows: Vec<f32>,
    stages: Stages,
    /// What of the layers' time was each shard's.
    shard_times: Vec<Duration>,
}

/// Where the time of a session went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// In layer shards.
    pub layers: Duration,
    /// In head slices.
    pub head: Duration,
    /// Everything else: embedding, tables, masks, copies.
    pub host: Duration,
}

/// The last hidden state that logits are wanted of.
#[derive(Clone, Copy)]
enum Hidden<'a> {
    /// Of any number of tokens, `[n, width]`.
    Rows(&'a [f32]),
    /// Of one, as the layers gave it, `[1, width, 1, 1]`: nothing need be copied on the way to the head.
    Column(&'a Tensor),
}

/// What calls of the layer shards with one number of tokens are made with: kept, so that a token allocates nothing.
struct LayerCall {
    host: HostInputs,
    embedded: Vec<f32>,
    x: Tensor,
    /// What shards give, in turns.
    hidden: [Tensor; 2],
}

impl LayerCall {
    /// What the last of so many shards gave.
    fn last(&self, shards: usize) -> &Tensor {
        &self.hidden[(shards - 1) % 2]
    }
}

/// The same of the head slices.
struct HeadCall {
    x: Tensor,
    /// What slices give that are called at once; of others, each writes its part of the logits itself.
    parts: Vec<Tensor>,
}

/// Sizes of calls that are remembered: one token, a full block, the rest of a prompt, and a token with each length of draft.
const KEPT: usize = 3 + crate::draft::LENGTHS.len();

/// The remembered call that fits; the oldest makes way for a new one.
fn kept<T>(calls: &mut Vec<T>, fits: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> &mut T {
    let at = calls.iter().position(fits).unwrap_or_else(|| {
        if calls.len() == KEPT {
            calls.remove(0);
        }
        calls.push(make());
        calls.len() - 1
    });
    &mut calls[at]
}

/// Which logits a caller wants of the tokens it feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Those after the last token.
    Last,
    /// Those after each of so many last tokens.
    Tail(usize),
    /// Those after every token.
    All,
    /// None at all, where more of the prompt follows.
    None,
}

impl<'e> Session<'e> {
    /// The engine it runs on.
    pub fn engine(&self) -> &'e Engine {
        self.engine
    }

    /// The contract of the bundle it runs on.
    pub fn contract(&self) -> &Contract {
        self.engine.contract()
    }

    /// Positions in use.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Positions left.
    pub fn left(&self) -> usize {
        self.engine.contract().context - self.position
    }

    /// Forgets every token from `position` on, as if they had never been fed; a position beyond the end changes nothing.
    ///
    /// The caches keep the rows, and nobody sees them: the mask closes every row from the position on, each row is written
    /// whole by the masked write before it is first looked at, and a closed row counts for exactly 0 in every sum.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Appends `ids` and returns logits `[0, 1 or ids, vocab]`, as wanted. Refused whole where a token is unknown or the context is too
    /// short; after a runtime's error the session is unusable.
    pub fn feed(&mut self, ids: &[u32], want: Logits) -> Result<Vec<f32>, Error> {
        let mut logits = Rows::default();
        self.feed_into(ids, want, &mut logits)?;
        Ok(logits.into_values())
    }

    /// Where the time went since the session began.
    pub fn stages(&self) -> Stages {
        self.stages
    }

    /// What of [`Stages::layers`] was each layer shard's.
    pub fn shard_times(&self) -> &[Duration] {
        &self.shard_times
    }

    /// As [`feed`](Self::feed), in memory that is there. On a runtime that allocates nothing itself, neither does this after the
    /// first calls with as many tokens.
    pub fn feed_into(&mut self, ids: &[u32], want: Logits, logits: &mut Rows) -> Result<(), Error> {
        let c = self.engine.contract();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= c.vocab) {
            return Err(Error::Token { id, vocab: c.vocab });
        }
        if ids.len() > self.left() {
            return Err(Error::ContextFull { asked: ids.len(), used: self.position, context: c.context });
        }
        let start = Instant::now();
        let (mut layers, mut rest) = (Duration::ZERO, ids);
        // Of the first token whose logits are wanted.
        let first = match want {
            Logits::All => 0,
            Logits::Tail(count) => ids.len().saturating_sub(count),
            Logits::Last => ids.len().saturating_sub(1),
            Logits::None => ids.len(),
        };
        // One token alone, whose hidden state stays where it is: `main` takes one.
        let alone = ids.len() == 1 && first == 0;
        self.rows.clear();
        while !rest.is_empty() {
            let (function, tokens) = block(&self.engine.layer_tokens, rest.len());
            let (block, later) = rest.split_at(tokens.min(rest.len()));
            let wanted = first.saturating_sub(ids.len() - rest.len()).min(block.len())..block.len();
            layers += self.step(block, function, tokens, if alone { 0..0 } else { wanted })?;
            rest = later;
        }
        let hidden = match self.layer_calls.iter().find(|call| call.x.shape()[2] == 1) {
            Some(call) if alone => Hidden::Column(call.last(self.engine.layers.len())),
            _ => Hidden::Rows(&self.rows),
        };
        let head = self.engine.head(hidden, &mut self.head_states, &mut self.head_calls, logits)?;
        self.stages.layers += layers;
        self.stages.head += head;
        self.stages.host += start.elapsed() - layers - head;
        Ok(())
    }

    /// One call of every layer shard; the wanted columns of the last hidden state are appended to `rows`. Returns how long the
    /// shards took.
    fn step(&mut self, block: &[u32], function: usize, tokens: usize, wanted: Range<usize>) -> Result<Duration, Error> {
        let engine = self.engine;
        let c = engine.contract();
        let call = kept(
            &mut self.layer_calls,
            |call| call.x.shape()[2] == tokens,
            || LayerCall {
                host: HostInputs::new(c, 0, 1, tokens, engine.float),
                embedded: Vec::new(),
                x: host::blank(c.width, tokens, engine.float),
                hidden: [host::blank(c.width, tokens, engine.float), host::blank(c.width, tokens, engine.float)],
            },
        );
        call.host.set(c, &engine.frequencies, self.position, block.len());
        host::embed_columns(c, &engine.embedding, block, &mut call.x, &mut call.embedded);
        let start = Instant::now();
        let mut before = start;
        for (i, (shard, state)) in engine.layers.iter().zip(&mut self.states).enumerate() {
            // Each shard reads what the one before it gave.
            let [even, odd] = &mut call.hidden;
            let (x, out) = match i {
                0 => (&call.x, even),
                _ if i % 2 == 1 => (&*even, odd),
                _ => (&*odd, even),
            };
            shard.call_into(function, x, &call.host, state, out)?;
            let now = Instant::now();
            self.shard_times[i] += now - before;
            before = now;
        }
        let took = before - start;
        self.position += block.len();
        host::extend_rows(call.last(engine.layers.len()), wanted, &mut self.rows);
        Ok(took)
    }
}

#[allow(unsafe_code, reason = "the memory map")]
fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: bundles never change in place; a file cut short under a running program is a fault of the machine.
    unsafe { Mmap::map(&file) }
}

/// Whether a package says it is what the manifest says of it.
fn check(manifest: &Manifest, model: &dyn Model, role: &str) -> Result<(), String> {
    let stated = |key: &str| model.metadata(key).ok_or_else(|| format!("has no metadata `{key}`"));
    let hash = stated(layout::metadata::CONTRACT_HASH)?;
    if hash != manifest.contract_hash {
        let own = stated(layout::metadata::CONTRACT)?;
        let differences = match Contract::from_json(own) {
            Ok(own) => own.differences(&manifest.contract).join("; "),
            Err(e) => format!("its contract cannot be read: {e}"),
        };
        return Err(format!("carries another contract than the manifest ({differences})"));
    }
    match stated(layout::metadata::ROLE)? {
        own if own == role => Ok(()),
        own => Err(format!("is `{own}`, and the manifest lists it as `{role}`")),
    }
}

/// Finds the function of `tokens` tokens and holds its ports to the frozen interface; `width` is that of its output.
fn function(model: &dyn Model, tokens: usize, contract: &Contract, width: usize) -> Result<Function, String> {
    let name = if tokens == 1 { "main" } else { "prefill" };
    let (index, signature) = find(model, name)?;
    let (s, half) = (contract.context, contract.rope.dim / 2);
    for port in &signature.inputs {
        let expected = match port.name.as_str() {
            "x" => vec![1, contract.width, tokens, 1],
            "rope_cos" | "rope_sin" => vec![tokens, half],
            "attn_mask" => vec![1, 1, tokens, s],
            "kv_write_mask" => vec![1, 1, s, tokens],
            other => {
                return Err(format!("function `{name}` has an input `{other}` that the shard interface does not know"));
            }
        };
        fits("input", name, port, &expected)?;
    }
    match &signature.outputs[..] {
        [output] => fits("output", name, output, &[1, width, tokens, 1])?,
        outputs => return Err(format!("function `{name}` has {} outputs, expected 1", outputs.len())),
    }
    Ok(Function { index, inputs: signature.inputs.iter().map(|p| p.name.clone()).collect() })
}

/// Whether a port is a float of that shape.
fn fits(what: &str, function: &str, port: &Port, expected: &[usize]) -> Result<(), String> {
    let (name, dtype, shape) = (&port.name, port.dtype, &port.shape);
    if !shape.iter().copied().eq(expected.iter().copied().map(Some)) {
        return Err(format!("function `{function}`: {what} `{name}` is {shape:?}, expected {expected:?}"));
    }
    if !matches!(dtype, Dtype::F16 | Dtype::F32) {
        return Err(format!("function `{function}`: {what} `{name}` is {dtype}, expected fp16"));
    }
    Ok(())
}

fn find<'m>(model: &'m dyn Model, name: &str) -> Result<(usize, &'m Signature), String> {
    let found = model.functions().iter().enumerate().find(|(_, f)| f.name == name);
    found.ok_or_else(|| format!("has no function `{name}`"))
}
