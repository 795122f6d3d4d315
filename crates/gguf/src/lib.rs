//! Bounded, zero-copy reader of GGUF files, their block types, and a writer for fixtures.
//!
//! GGUF is ggml's container for a language model: typed metadata under names, then tensors whose rows are sequences of
//! quantised blocks. This crate answers three questions and no others: what is in the file ([`Gguf`]), what does a key
//! say ([`Metadata`]), and which numbers does a block stand for ([`dequantize`]). What the keys *mean* for a model is
//! the business of those who read them.
//!
//! The file is hostile until shown otherwise. Opening it checks every count, length, offset and size against the bytes
//! that are there before anything is allocated; what fails is one [`Error`] that names the field and its offset. Memory
//! stays within a small multiple of the file, and tensor data is never copied: it stays in the map.

#![deny(unsafe_code)]

mod block;
mod dequant;
mod error;
mod file;
mod parse;
pub mod simd;
mod value;
pub mod writer;

pub use block::BlockType;
pub use dequant::{dequantize, dequantize_with};
pub use error::{Error, optional};
pub use file::{Gguf, Tensor, TensorInfo};
pub use value::{Array, Metadata, Value};
