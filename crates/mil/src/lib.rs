//! Core ML's ML Program: the IR, its op table and validator, and the `.mlpackage` reader and writer.
pub mod ir;
