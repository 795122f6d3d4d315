//! Core ML's ML Program: the IR, its op table and validator, and the `.mlpackage` reader and writer.
//!
//! A program is built ([`build`]), read ([`package::read`]) or parsed ([`text::parse`]); it becomes [`Valid`] in
//! [`validate`](validate()) or [`validate_foreign`] and nowhere else; and only a valid program can be written
//! ([`package::write`]) or executed. What is valid is said once, by the op table ([`ops`]) and by the rules at the head of the validator.

pub mod build;
pub mod decode;
pub mod diag;
pub mod ir;
mod literal;
pub mod names;
pub mod ops;
pub mod package;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
mod validate;

pub use build::{BuildError, FunctionBuilder, Operand, program};
pub use diag::{Diagnostic, Report, Severity};
pub use package::{OpenError, ReadError, WriteError, Written, open, read, write};
pub use validate::{Valid, validate, validate_foreign};
