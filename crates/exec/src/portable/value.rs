//! Values while a program runs: a type, a shape, and elements that are shared until somebody needs to change them.
//!
//! Elements live in one of three forms. Floats of any declared width are `f32`; integers of any width, and bools, are
//! `i32`; a weight that only weight-aware kernels read stays as its package stores it ([`Stored`]) and is widened row by row
//! inside them: nothing is copied at load, and a token streams the bytes of the file. The declared type travels beside the
//! elements, so that rounding and wrapping happen in one place, after each op.
//!
//! A [`Buf`] is a window on a shared vector. Reshapes, reads of a state and slices of leading dimensions are new windows;
//! a kernel that may work in place asks [`Buf::unique`] and gets the elements only if nobody else can see them.

use std::ops::{Deref, Range};
use std::sync::Arc;

use anemone_mil::ir::{Dtype, Literal};

use super::{Fault, loops};

/// A window on a shared vector.
#[derive(Clone, Debug)]
pub struct Buf<T> {
    store: Arc<Vec<T>>,
    window: Range<usize>,
}

impl<T> Buf<T> {
    /// The window of that range within this one, sharing its elements.
    pub fn window(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.window.len());
        let start = self.window.start;
        Self { store: Arc::clone(&self.store), window: start + range.start..start + range.end }
    }

    /// The elements for writing, if no other window shares them.
    pub fn unique(&mut self) -> Option<&mut [T]> {
        let window = self.window.clone();
        Arc::get_mut(&mut self.store).map(|v| &mut v[window])
    }

    /// The whole vector behind the window, if no other window shares it.
    pub fn into_vec(self) -> Option<Vec<T>> {
        Arc::into_inner(self.store)
    }
}

impl<T: Clone> Buf<T> {
    /// The elements of the window in a vector of their own, without copying where nobody shares them.
    pub fn into_owned_vec(self) -> Vec<T> {
        if self.window != (0..self.store.len()) {
            return self.to_vec();
        }
        Arc::unwrap_or_clone(self.store)
    }
}

impl<T> From<Vec<T>> for Buf<T> {
    fn from(v: Vec<T>) -> Self {
        let window = 0..v.len();
        Self { store: Arc::new(v), window }
    }
}

impl<T> Deref for Buf<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.store[self.window.clone()]
    }
}

/// A weight as its package stores it: kernels widen what they read, when they read it.
#[derive(Clone, Debug)]
pub enum Stored {
    /// fp16 bytes.
    Halves(Literal),
    /// int8, and scales that each hold for as many elements on end.
    Bytes {
        /// The int8 data.
        data: Literal,
        /// The scales, fp16 widened.
        scales: Arc<[f32]>,
    },
    /// Indices of four bits, the first of two in a byte's low half, and tables that each hold for as many elements on end.
    Palette {
        /// The indices.
        indices: Literal,
        /// The tables, [`PALETTE`] entries each, fp16 widened.
        tables: Arc<[f32]>,
    },
}

/// Entries of a table that four bits index.
pub const PALETTE: usize = 16;

impl Stored {
    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Stored::Halves(literal) => literal.bytes().map_or(0, |b| b.len() / 2),
            Stored::Bytes { data, .. } => data.bytes().map_or(0, <[u8]>::len),
            Stored::Palette { indices, .. } => indices.bytes().map_or(0, |b| 2 * b.len()),
        }
    }

    /// Widens the elements from `start` on into `out`.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        match self {
            Stored::Halves(literal) => {
                let bytes = literal.bytes().unwrap_or_default();
                loops::widen(&bytes[start * 2..(start + out.len()) * 2], out);
            }
            Stored::Bytes { data, scales } => {
                let bytes = data.bytes().unwrap_or_default();
                let each = bytes.len() / scales.len();
                let (mut at, mut rest) = (start, out);
                while !rest.is_empty() {
                    let n = rest.len().min(each - at % each);
                    let (now, later) = rest.split_at_mut(n);
                    loops::scale(&bytes[at..at + n], scales[at / each], now);
                    (at, rest) = (at + n, later);
                }
            }
            Stored::Palette { indices, tables } => {
                let bytes = indices.bytes().unwrap_or_default();
                let each = 2 * bytes.len() / (tables.len() / PALETTE);
                for (i, out) in (start..).zip(out) {
                    let index = bytes[i / 2] >> (4 * (i % 2)) & 15;
                    *out = tables[i / each * PALETTE + usize::from(index)];
                }
            }
        }
    }
}

/// Elements in their working form.
#[derive(Clone, Debug)]
pub enum Elements {
    /// Floats of any declared width.
    Floats(Buf<f32>),
    /// Integers of any declared width, and bools as 0 and 1.
    Ints(Buf<i32>),
    /// A weight in its stored form.
    Stored(Stored),
}

/// A tensor in flight.
#[derive(Clone, Debug)]
pub struct Value {
    /// The declared element type.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: Elements,
}

impl Value {
    /// A float value of declared type `dtype`.
    pub fn floats(dtype: Dtype, shape: &[usize], v: impl Into<Buf<f32>>) -> Self {
        Self { dtype, shape: shape.to_vec(), data: Elements::Floats(v.into()) }
    }

    /// An integer or bool value of declared type `dtype`.
    pub fn ints(dtype: Dtype, shape: &[usize], v: impl Into<Buf<i32>>) -> Self {
        Self { dtype, shape: shape.to_vec(), data: Elements::Ints(v.into()) }
    }

    /// The same elements under another shape of as many elements.
    pub fn reshaped(self, shape: Vec<usize>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), self.len());
        Self { shape, ..self }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are as many elements as the shape says.
    pub fn is_whole(&self) -> bool {
        match &self.data {
            Elements::Floats(b) => b.len() == self.len(),
            Elements::Ints(b) => b.len() == self.len(),
            Elements::Stored(w) => w.len() == self.len(),
        }
    }

    /// The float elements.
    pub fn f32s(&self) -> Result<&[f32], Fault> {
        match &self.data {
            Elements::Floats(b) => Ok(b),
            _ => Err(Fault::new(format!("expected a float operand, found {}", self.dtype))),
        }
    }

    /// The only element, as a number.
    pub fn scalar(&self) -> Result<f64, Fault> {
        let single = match &self.data {
            Elements::Ints(b) => (b.len() == 1).then(|| f64::from(b[0])),
            _ => self.f32s().ok().filter(|v| v.len() == 1).map(|v| f64::from(v[0])),
        };
        single.ok_or_else(|| Fault::new(format!("expected one element, found {}{:?}", self.dtype, self.shape)))
    }

    /// The integer or bool elements.
    pub fn i32s(&self) -> Result<&[i32], Fault> {
        match &self.data {
            Elements::Ints(b) => Ok(b),
            _ => Err(Fault::new(format!("expected an integer or bool operand, found {}", self.dtype))),
        }
    }
}

/// The number of elements of a shape, if it fits. Strides and loops over an empty array still meet its other dimensions, so
/// these must fit as well.
pub fn elements(shape: &[usize]) -> Result<usize, Fault> {
    let extent = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
    match extent.filter(|&n| n <= isize::MAX as usize / 8) {
        Some(extent) => Ok(if shape.contains(&0) { 0 } else { extent }),
        None => Err(Fault::new(format!("shape {shape:?} has too many elements"))),
    }
}

/// Row-major strides of a shape.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// `axis`, counted from the end if negative, within `rank` dimensions.
pub fn axis_of(axis: i32, rank: usize) -> Result<usize, Fault> {
    let a = if axis < 0 { axis as i64 + rank as i64 } else { axis as i64 };
    usize::try_from(a)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Fault::new(format!("axis {axis} is out of range for rank {rank}")))
}

/// The value that `dtype` holds when `v` is stored into it.
pub fn wrap(dtype: Dtype, v: i32) -> i32 {
    match dtype {
        Dtype::I8 => i32::from(v as i8),
        Dtype::U8 => i32::from(v as u8),
        Dtype::I16 => i32::from(v as i16),
        Dtype::U16 => i32::from(v as u16),
        Dtype::Bool => i32::from(v != 0),
        _ => v,
    }
}
