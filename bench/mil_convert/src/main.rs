//! `bench-mil-convert MODEL.gguf OUT.mlpackage`: what `anemone build MODEL` does, by mil_convert. The decoder of one token with
//! embedding and head, int8 with a scale for each output channel, a cache of 512 positions, and the tokenizer beside it.

use std::path::PathBuf;

use mil_convert::{Options, Quant, convert_gguf};

fn main() {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, package] = paths.as_slice() else {
        eprintln!("usage: bench-mil-convert MODEL.gguf OUT.mlpackage");
        std::process::exit(2);
    };
    let options =
        Options { seq: 1, max_kv: 512, quant: Quant::Int8, lm_head: true, embed: true, ..Options::default() };
    match convert_gguf(model, package, &options) {
        Ok(report) => {
            if let Some(error) = report.tokenizer_error {
                eprintln!("no tokenizer: {error}");
                std::process::exit(1);
            }
        }
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
