//! A text form of programs: what people read, what diagnostics quote, what tests are written in.
//!
//! ```text
//! program 9 default main single {
//!   func main CoreML8 (%x: fp16[1, 4], %s: state<fp16[1, 4]>) {
//!     input x: fp16 [1, 4]
//!     state s: fp16 [1, 4]
//!     output y: fp16 [1, 4]
//!     %r: fp16[1, 4] = read_state(input=%s) {name="r"}
//!     %y: fp16[1, 4] = add(x=%x, y=%r) {name="y"}
//!     write_state(input=%s, data=%y) {name="w"}
//!     return %y
//!   }
//! }
//! ```
//!
//! A literal is its type and its elements, `int32[2](0, 64)`, or its packed bytes, `fp16[2]hex"003c00c0"`. [`to_text`] writes
//! everything, and [`parse`] reads it back to the same program; `Display` leaves out the bytes of weights and says where
//! they are instead, which is for reading only.

mod parse;
mod print;

pub use parse::{ParseError, parse};
pub use print::{op_line, to_text};
