//! The oracle itself is judged here by programs that nobody here wrote: every expected number comes from transformers.

mod common;
mod longrope;
mod miniature;
mod refusals;
mod smollm2;
