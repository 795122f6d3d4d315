//! A stand-in for Phi-4-mini: every shape, key and token id of the model, and weights that mean nothing.
//!
//! Speed, memory and scale do not depend on what a model knows, so they can be measured without its four gigabytes being
//! fetched. What they can depend on is here: shapes and block type, the size of the tokenizer, and weights whose statistics
//! resemble trained ones, so that scales differ from row to row and a few channels stand out. Correctness belongs to the
//! trained fixtures.
//!
//! A file follows from its options and seed alone. Rows are made in parallel and written in order, a batch at a time, so
//! memory does not grow with the model.

mod blocks;
mod random;
mod tokenizer;
mod weights;

use std::path::PathBuf;
use std::time::Instant;

use anemone_gguf::BlockType;
use anemone_gguf::writer::Writer;
use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use weights::Matrix;

/// Write a GGUF of Phi-4-mini's shapes with seeded weights.
#[derive(Parser, Clone, Debug)]
#[command(after_help = "Example: cargo run --release -p xtask -- synth --layers 32 -o phi4-shape.gguf")]
pub struct Args {
    /// Where the file goes; one that is there is replaced.
    #[arg(short, long)]
    output: PathBuf,
    /// Layers, 1 to 32.
    #[arg(long, default_value_t = 32)]
    layers: usize,
    /// Tokens of the vocabulary. Fewer than the model's keep their order; the control tokens are always the last.
    #[arg(long, default_value_t = VOCAB)]
    vocab: usize,
    /// How matrices are stored.
    #[arg(long = "type", value_enum, default_value_t = Format::Q8_0)]
    format: Format,
    /// What the weights follow from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// How matrices are stored; norms and rope factors are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(non_camel_case_types)]
pub enum Format {
    Q8_0,
    Q4_K,
    F16,
}

impl Format {
    fn block_type(self) -> BlockType {
        match self {
            Format::Q8_0 => BlockType::Q8_0,
            Format::Q4_K => BlockType::Q4_K,
            Format::F16 => BlockType::F16,
        }
    }

    /// `general.file_type`, as llama.cpp numbers what a file mostly holds.
    fn file_type(self) -> u32 {
        match self {
            Format::F16 => 1,
            Format::Q8_0 => 7,
            Format::Q4_K => 14,
        }
    }
}

// Phi-4-mini, from its public config.
const VOCAB: usize = 200_064;
const LAYERS: usize = 32;
const WIDTH: usize = 3072;
const FFN: usize = 8192;
const HEADS: usize = 24;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const ROPE_DIM: usize = 96;
const CONTEXT: u32 = 131_072;
const ORIGINAL_CONTEXT: u32 = 4096;

pub fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    let writer = model(args)?;
    writer.write_to(&args.output).with_context(|| args.output.display().to_string())?;
    let bytes = std::fs::metadata(&args.output)?.len();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{}: {bytes} bytes in {seconds:.1} s", args.output.display());
    Ok(())
}

/// The file to be: small things are made here, matrices when they are written.
fn model(args: &Args) -> Result<Writer<'static>> {
    ensure!((1..=LAYERS).contains(&args.layers), "--layers {}: the model has 1 to {LAYERS}", args.layers);
    let vocab = tokenizer::SMALLEST..=VOCAB;
    ensure!(vocab.contains(&args.vocab), "--vocab {}: expected {} to {VOCAB}", args.vocab, tokenizer::SMALLEST);

    let mut writer = Writer::new("phi3");
    keys(&mut writer, args);
    tokenizer::keys(&mut writer, args.vocab, args.seed);

    let mut tensors = Tensors { writer: &mut writer, seed: args.seed, ty: args.format.block_type() };
    let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    tensors.matrix("token_embd".into(), args.vocab, WIDTH);
    for layer in 0..args.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        tensors.norm(name("attn_norm"));
        tensors.matrix(name("attn_qkv"), q + 2 * kv, WIDTH);
        tensors.matrix(name("attn_output"), WIDTH, q);
        tensors.norm(name("ffn_norm"));
        tensors.matrix(name("ffn_up"), 2 * FFN, WIDTH);
        tensors.matrix(name("ffn_down"), WIDTH, FFN);
    }
    tensors.norm("output_norm".into());
    // The model's short factors are all 1; its long ones grow with the wavelength up to a few dozen.
    let pairs = ROPE_DIM / 2;
    let long: Vec<f32> = (0..pairs).map(|i| 64f32.powf(i as f32 / (pairs - 1) as f32)).collect();
    writer.tensor_f32("rope_factors_long.weight", &[pairs], &long);
    writer.tensor_f32("rope_factors_short.weight", &[pairs], &vec![1.0; pairs]);
    Ok(writer)
}

fn keys(writer: &mut Writer<'_>, args: &Args) {
    // sqrt(1 + ln(s) / ln(original)), s being how much longer the context is than the original one.
    let stretch = f64::from(CONTEXT) / f64::from(ORIGINAL_CONTEXT);
    let attention_factor = (1.0 + stretch.ln() / f64::from(ORIGINAL_CONTEXT).ln()).sqrt() as f32;
    writer
        .key("general.type", "model")
        .key("general.name", format!("Phi-4-mini stand-in, {} layers, seed {}", args.layers, args.seed))
        .key("general.file_type", args.format.file_type())
        .key("general.quantization_version", 2u32)
        .key("phi3.block_count", args.layers as u32)
        .key("phi3.context_length", CONTEXT)
        .key("phi3.embedding_length", WIDTH as u32)
        .key("phi3.feed_forward_length", FFN as u32)
        .key("phi3.attention.head_count", HEADS as u32)
        .key("phi3.attention.head_count_kv", KV_HEADS as u32)
        .key("phi3.attention.layer_norm_rms_epsilon", 1e-5f32)
        .key("phi3.attention.sliding_window", 262_144u32)
        .key("phi3.vocab_size", args.vocab as u32)
        .key("phi3.rope.dimension_count", ROPE_DIM as u32)
        .key("phi3.rope.freq_base", 10_000f32)
        .key("phi3.rope.scaling.original_context_length", ORIGINAL_CONTEXT)
        .key("phi3.rope.scaling.attn_factor", attention_factor);
}

/// Adds tensors, each with a seed of its own that follows from its name: a layer's weights do not depend on how many
/// layers there are.
struct Tensors<'w> {
    writer: &'w mut Writer<'static>,
    seed: u64,
    ty: BlockType,
}

impl Tensors<'_> {
    fn matrix(&mut self, name: String, rows: usize, columns: usize) {
        let name = name + ".weight";
        let matrix = Matrix::new(random::seed(self.seed, &name), rows, columns, self.ty);
        self.writer.tensor_with(&name, &[rows, columns], self.ty, move |out| matrix.write(out));
    }

    fn norm(&mut self, name: String) {
        let name = name + ".weight";
        self.writer.tensor_f32(&name, &[WIDTH], &weights::norm(random::seed(self.seed, &name), WIDTH));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use anemone_gguf::Gguf;

    use super::*;

    fn bytes(args: &[&str]) -> Vec<u8> {
        let args = ["synth", "-o", "unused"].iter().chain(args);
        model(&Args::try_parse_from(args).unwrap()).unwrap().to_bytes().unwrap()
    }

    #[test]
    fn one_layer_has_the_models_shapes() {
        let gguf = Gguf::from_bytes(bytes(&["--layers", "1", "--vocab", "600"])).unwrap();
        let found: Vec<_> = gguf.tensors().iter().map(|t| (t.name.as_str(), t.shape.as_slice(), t.ty)).collect();
        let (q8, f32) = (BlockType::Q8_0, BlockType::F32);
        let expected: [(&str, &[usize], BlockType); 10] = [
            ("token_embd.weight", &[600, 3072], q8),
            ("blk.0.attn_norm.weight", &[3072], f32),
            ("blk.0.attn_qkv.weight", &[5120, 3072], q8),
            ("blk.0.attn_output.weight", &[3072, 3072], q8),
            ("blk.0.ffn_norm.weight", &[3072], f32),
            ("blk.0.ffn_up.weight", &[16384, 3072], q8),
            ("blk.0.ffn_down.weight", &[3072, 8192], q8),
            ("output_norm.weight", &[3072], f32),
            ("rope_factors_long.weight", &[48], f32),
            ("rope_factors_short.weight", &[48], f32),
        ];
        assert_eq!(found, expected);
        assert!((gguf.metadata().f32("phi3.rope.scaling.attn_factor").unwrap() - 1.190_238_1).abs() < 1e-6);
        for tensor in gguf.tensors().iter().filter(|t| t.ty == f32) {
            assert!(gguf.tensor(&tensor.name).unwrap().dequantize().iter().all(|w| w.is_finite() && *w > 0.0));
        }
    }

    #[test]
    fn the_lowering_reads_the_models_contract() {
        use anemone_bundle::contract::{FactorSet, Scaling, WeightMode};
        use anemone_chat::Tokenizer;
        use anemone_lower::{Model, contract::Options};

        let gguf = Arc::new(Gguf::from_bytes(bytes(&["--layers", "1", "--vocab", "600"])).unwrap());
        let stop = Tokenizer::from_gguf(gguf.metadata()).unwrap().config().stop.clone();
        // <|endoftext|> and <|end|>, as far from the vocabulary's end as in the model.
        assert_eq!(stop.iter().map(|id| 200_064 - 600 + id).collect::<Vec<_>>(), [199_999, 200_020]);
        for (context, set) in [(2048, FactorSet::Short), (8192, FactorSet::Long)] {
            let options = Options { context: Some(context), weights: WeightMode::Int8Channel, stop: stop.clone() };
            let contract = Model::new(Arc::clone(&gguf), "stand-in.gguf", &options).unwrap().contract;
            assert_eq!((contract.layers, contract.width, contract.ffn, contract.vocab), (1, 3072, 8192, 600));
            assert_eq!((contract.heads, contract.kv_heads, contract.head_dim, contract.rope.dim), (24, 8, 128, 96));
            assert_eq!(contract.rope.scaling, Scaling::LongRope { set, original_context: 4096 });
            assert_eq!(contract.rope.factors.iter().all(|&f| f == 1.0), set == FactorSet::Short);
            assert!(contract.tied);
        }
    }

    #[test]
    fn the_tokenizer_and_template_make_a_prompt() {
        use anemone_chat::{ChatTemplate, Control, Special, Tokenizer};

        let gguf = Gguf::from_bytes(bytes(&["--layers", "1", "--vocab", "3000"])).unwrap();
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).unwrap();
        let text = "<|user|>Hello, wörld!<|end|><|assistant|>";
        let ids = tokenizer.encode(text, Special::Parse);
        let reserved = |id: u32| id + 200_064 - 3000;
        assert_eq!((reserved(ids[0]), reserved(ids[ids.len() - 1])), (200_021, 200_019));
        assert_eq!(tokenizer.decode(&ids, Control::Show).unwrap(), text);
        ChatTemplate::new(gguf.metadata().str("tokenizer.chat_template").unwrap()).unwrap();
    }

    #[test]
    fn bytes_follow_from_options_and_seed() {
        for format in ["q8_0", "q4_k", "f16"] {
            let options = ["--layers", "1", "--vocab", "600", "--type", format];
            let first = bytes(&options);
            assert!(first == bytes(&options), "{format}");
            let other = bytes(&[&options[..], &["--seed", "1"]].concat());
            assert!(first != other, "{format}");
        }
    }

    #[test]
    fn a_layer_is_the_same_in_a_longer_model() {
        let open = |layers| Gguf::from_bytes(bytes(&["--layers", layers, "--vocab", "600", "--type", "q4_k"])).unwrap();
        let (one, two) = (open("1"), open("2"));
        for tensor in one.tensors() {
            let bytes = |gguf: &Gguf| gguf.tensor(&tensor.name).unwrap().bytes().to_vec();
            assert!(bytes(&one) == bytes(&two), "{}", tensor.name);
        }
    }

    #[test]
    fn what_the_model_is_not_is_refused() {
        for (options, word) in [(["--layers", "33"], "1 to 32"), (["--vocab", "100"], "322 to 200064")] {
            let args = Args::try_parse_from(["synth", "-o", "unused"].iter().chain(&options)).unwrap();
            let message = model(&args).err().unwrap().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
