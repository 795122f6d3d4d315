//! The contract gate: source, shards and manifest agree.
//!
//! The source is read again by the reference forward's own reader, which shares no code with the lowering that wrote the
//! contract. The files are held to their hashes, and every package to the contract, the role and the ports it must have.

use anemone_bundle::contract::{Contract, Pairing, WeightMode};
use anemone_bundle::layout::metadata;
use anemone_mil::ir::{Dtype, Feature, Program};
use anemone_mil::package;
use anemone_reference::{self as reference, Part, Weight};

use crate::subject::Subject;
use crate::verdict::{Finding, Verdict};

/// The gate's name.
pub const NAME: &str = "contract";

/// Judges the bundle as a whole, then each package. `seen` is told bytes as files are hashed.
pub fn judge(subject: &Subject, seen: impl FnMut(u64)) -> Vec<Finding> {
    let finding = |part: &str, faults: Vec<String>, good: &str| {
        let (verdict, message) = match faults.is_empty() {
            true => (Verdict::Passed, good.to_owned()),
            false => (Verdict::Failed, faults.join("; ")),
        };
        subject.finding(NAME, part, verdict, "files", message)
    };
    let files = subject.manifest.verify_files(&subject.folder, seen).err().map(|e| e.to_string());
    let mut all = vec![
        finding("files", files.into_iter().collect(), "every file has the size and hash of the manifest"),
        finding("source", source(subject), "the source, read independently, says what the contract says"),
    ];
    for (path, role) in subject.packages() {
        let faults = match package::read(&subject.folder.join(path)) {
            Ok(program) => shard(&subject.manifest.contract, &subject.manifest.tokens, &program, &role),
            Err(e) => vec![e.to_string()],
        };
        all.push(finding(path, faults, "carries the contract, its role and the interface"));
    }
    all
}

/// Every field of the contract that the source determines, as the reference reads it.
fn source(subject: &Subject) -> Vec<String> {
    let c = &subject.manifest.contract;
    let model = match reference::Model::open(subject.source.clone(), reference::Options::new(c.context)) {
        Ok(model) => model,
        Err(e) => return vec![format!("the source cannot be read as a model: {e}")],
    };
    let (h, rope) = (model.hyperparameters(), model.rope());
    let mut faults = Vec::from_iter(another_file(subject));
    let mut hold = |field: &str, contract: String, source: String| {
        if contract != source {
            faults.push(format!("{field} is {contract} in the contract and {source} in the source"));
        }
    };
    let pairing = match rope.pairing {
        reference::Pairing::HalfSplit => Pairing::HalfSplit,
        reference::Pairing::Interleaved => Pairing::Interleaved,
    };
    hold("architecture", c.architecture.clone(), h.architecture.name().to_owned());
    hold("layers", c.layers.to_string(), h.layers.to_string());
    hold("width", c.width.to_string(), h.width.to_string());
    hold("ffn", c.ffn.to_string(), h.ffn.to_string());
    hold("heads", c.heads.to_string(), h.heads.to_string());
    hold("kv_heads", c.kv_heads.to_string(), h.kv_heads.to_string());
    hold("head_dim", c.head_dim.to_string(), h.head_dim.to_string());
    hold("vocab", c.vocab.to_string(), model.vocabulary().to_string());
    let has = |weight: &dyn Fn(Part) -> bool| {
        model.weights().any(|(w, ..)| matches!(w, Weight::Layer(_, part) if weight(part))).to_string()
    };
    let biases = &c.biases;
    let qkv = |part| matches!(part, Part::QueryBias | Part::KeyBias | Part::ValueBias);
    hold("biases.qkv", biases.qkv.to_string(), has(&qkv));
    hold("biases.attention_output", biases.attention_output.to_string(), has(&|part| part == Part::OutputBias));
    hold("biases.gate_up", biases.gate_up.to_string(), has(&|part| matches!(part, Part::GateBias | Part::UpBias)));
    hold("biases.down", biases.down.to_string(), has(&|part| part == Part::DownBias));
    hold("tied", c.tied.to_string(), subject.source.find("output.weight").is_none().to_string());
    // No architecture that the reference knows scales its embedding.
    hold("embedding_scale", c.embedding_scale.to_string(), 1f32.to_string());
    match subject.source.metadata().u32("tokenizer.ggml.eos_token_id") {
        Ok(eos) if c.tokens.stop.contains(&eos) => hold("tokens.eos", c.tokens.eos.to_string(), eos.to_string()),
        Ok(eos) => {
            hold("tokens.stop", format!("{:?}", c.tokens.stop), format!("a set with its end of sequence, {eos},"))
        }
        Err(e) => hold("tokens.eos", c.tokens.eos.to_string(), e.to_string()),
    }
    hold("context_max", c.context_max.to_string(), h.context.to_string());
    hold("norm.eps", c.norm.eps.to_string(), h.eps.to_string());
    hold("rope.dim", c.rope.dim.to_string(), h.rope_dim.to_string());
    hold("rope.pairing", format!("{:?}", c.rope.pairing), format!("{pairing:?}"));
    hold("rope.attention_factor", c.rope.attention_factor.to_string(), (rope.attention_factor as f32).to_string());
    let frequencies = c.inverse_frequencies();
    if frequencies.len() != rope.frequencies.len() {
        hold("rotary pairs", frequencies.len().to_string(), rope.frequencies.len().to_string());
    } else if let Some(i) = (0..frequencies.len()).find(|&i| !close(frequencies[i], rope.frequencies[i])) {
        hold(&format!("rotary frequency {i}"), frequencies[i].to_string(), rope.frequencies[i].to_string());
    }
    faults
}

/// Whether the file at hand is not the one that the manifest names.
fn another_file(subject: &Subject) -> Option<String> {
    let stated = &subject.manifest.source;
    let bytes: u64 = subject.source.parts().map(|p| p.len() as u64).sum();
    if bytes != stated.bytes {
        return Some(format!("the source is {bytes} bytes, and the bundle was built from one of {}", stated.bytes));
    }
    let mut hasher = blake3::Hasher::new();
    for part in subject.source.parts() {
        hasher.update_rayon(part);
    }
    let hash = hasher.finalize().to_hex().to_string();
    (hash != stated.blake3)
        .then(|| format!("the source has BLAKE3 {hash}, and the bundle was built from {}", stated.blake3))
}

/// Equal but for the last bits of an f32: both sides compute in f64 from f32 keys, in different order.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs())
}

/// What a package must say of itself.
fn shard(contract: &Contract, tokens: &[usize], program: &Program, role: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut hold = |key: &str, expected: &str| match program.metadata.get(key) {
        None => faults.push(format!("has no metadata `{key}`")),
        Some(found) if found != expected => {
            faults.push(format!("metadata `{key}` is `{found}`, expected `{expected}`"))
        }
        Some(_) => {}
    };
    hold(metadata::CONTRACT_HASH, &contract.hash());
    hold(metadata::CONTRACT, &contract.to_json());
    hold(metadata::ROLE, role);

    let range = role.rsplit(' ').next().and_then(|r| r.split_once('-'));
    let len = range.and_then(|(a, b)| b.parse::<usize>().ok()?.checked_sub(a.parse().ok()?)).unwrap_or(0);
    let mut names: Vec<&str> = tokens.iter().map(|&t| if t == 1 { "main" } else { "prefill" }).collect();
    names.sort_unstable();
    let found: Vec<&str> = program.functions.iter().map(|f| f.name.as_str()).collect();
    if found != names {
        faults.push(format!("has functions {found:?}, expected {names:?}"));
        return faults;
    }
    for &t in tokens {
        let name = if t == 1 { "main" } else { "prefill" };
        let Some(function) = program.function(name) else { continue };
        let (inputs, outputs, states) = ports(contract, t, role.starts_with("head"), len);
        for (kind, found, expected) in [
            ("inputs", &function.interface.inputs, inputs),
            ("outputs", &function.interface.outputs, outputs),
            ("states", &function.interface.states, states),
        ] {
            let found: Vec<_> = found.iter().map(|f: &Feature| (f.name.clone(), f.dtype, f.shape.clone())).collect();
            let mut missing = expected.iter().filter(|e| !found.contains(e));
            if let Some((port, _, shape)) = missing.next() {
                faults.push(format!(
                    "function `{name}`: {kind} lack `{port}` fp16 {:?}",
                    shape.as_deref().unwrap_or(&[])
                ));
            } else if found.len() != expected.len() {
                faults.push(format!("function `{name}`: {} {kind}, expected {}", found.len(), expected.len()));
            }
        }
    }
    if let Some(fault) = weight_mode(contract.weights, program) {
        faults.push(fault);
    }
    faults
}

type Port = (String, Dtype, Option<Vec<usize>>);

/// The frozen interface of a piece of `len` layers or rows.
fn ports(c: &Contract, t: usize, head: bool, len: usize) -> (Vec<Port>, Vec<Port>, Vec<Port>) {
    let port = |name: &str, shape: &[usize]| (name.to_owned(), Dtype::F16, Some(shape.to_vec()));
    let x = port("x", &[1, c.width, t, 1]);
    if head {
        return (vec![x], vec![port("logits", &[1, len, t, 1])], vec![]);
    }
    let (s, half) = (c.context, c.rope.dim / 2);
    let inputs = vec![
        x,
        port("rope_cos", &[t, half]),
        port("rope_sin", &[t, half]),
        port("attn_mask", &[1, 1, t, s]),
        port("kv_write_mask", &[1, 1, s, t]),
    ];
    let cache = |name: String| port(&name, &[1, c.kv_heads, s, c.head_dim]);
    let states = (0..len).flat_map(|i| [cache(format!("k_cache_{i}")), cache(format!("v_cache_{i}"))]).collect();
    (inputs, vec![port("hidden", &[1, c.width, t, 1])], states)
}

/// Whether every convolution's weight is stored as the contract says.
fn weight_mode(mode: WeightMode, program: &Program) -> Option<String> {
    for function in &program.functions {
        for op in function.ops.iter().filter(|op| op.kind == "conv") {
            let weight = op.inputs.get("weight").and_then(|args| match args.first() {
                Some(anemone_mil::ir::Arg::Value(id)) => Some(*id),
                _ => None,
            });
            let source = weight.and_then(|id| function.ops.iter().find(|op| op.outputs.contains(&id)));
            let found = source.map_or("nothing", |op| op.kind.as_str());
            let expected = match mode {
                WeightMode::Fp16 => "const",
                WeightMode::Int8 | WeightMode::Int8Channel => "constexpr_blockwise_shift_scale",
            };
            if found != expected {
                return Some(format!(
                    "function `{}`: weight of `{}` comes from `{found}`, and {mode} means `{expected}`",
                    function.name, op.name
                ));
            }
        }
    }
    None
}
