//! Arrays in memory that Core ML reads and writes in place, and arrays as Core ML laid them out itself.
//!
//! An [`Array`] is dense, row-major and aligned to 64 bytes, in memory that this crate owns and counts the holders of: a call
//! hands Core ML a share of it, and what is still shared when the call is over is left to Core ML. A [`Strided`] array is what
//! came back instead where Core ML would not use the memory it was offered: others report rows padded out to 64 bytes on
//! the Neural Engine, so its strides are checked and its elements gathered.

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;

use anemone_exec::{Data, Tensor};
use anemone_mil::ir::Dtype;
use half::f16;

/// The alignment of every array, in bytes.
pub const ALIGNMENT: usize = 64;

/// The most bytes one array may have: a bound on what a package can make us allocate.
const MAX_BYTES: usize = 1 << 32;

#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; ALIGNMENT]>);

/// Zeroed memory that may be written through a shared pointer.
pub struct Memory(Box<[Line]>);

// SAFETY: the bytes are reached through `Array::bytes_mut`, which has the only reference there is, or through a pointer whose
// users are bound by the contracts of `Array::pointer` and `Array::bytes`.
unsafe impl Sync for Memory {}

/// A dense array in our own memory.
pub struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    memory: Arc<Memory>,
}

/// Bytes of an element that crosses Core ML's border; `None` for types that cannot.
pub fn element_bytes(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F16 => Some(2),
        Dtype::F32 | Dtype::I32 => Some(4),
        _ => None,
    }
}

impl Array {
    /// An array of zeros.
    ///
    /// # Errors
    /// Where the type cannot cross the border, or the array would have more than 4 GiB.
    pub fn new(dtype: Dtype, shape: &[usize]) -> Result<Self, String> {
        let element = element_bytes(dtype).ok_or_else(|| format!("Core ML's arrays cannot hold {dtype}"))?;
        let bytes = shape.iter().try_fold(element, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_BYTES);
        let bytes = bytes.ok_or_else(|| format!("an array of shape {shape:?} is too large"))?;
        let line = || Line(UnsafeCell::new([0; ALIGNMENT]));
        let memory = Arc::new(Memory((0..bytes.div_ceil(ALIGNMENT).max(1)).map(|_| line()).collect()));
        Ok(Self { dtype, shape: shape.to_vec(), bytes, memory })
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The strides of a dense array, in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        for axis in (1..self.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * self.shape[axis].max(1);
        }
        strides
    }

    /// Where the elements are, [`ALIGNMENT`]-aligned. Valid for reads and writes as long as the array or a
    /// [`share`](Self::share) of it lives, and until [`bytes_mut`](Self::bytes_mut) is called.
    pub fn pointer(&self) -> NonNull<u8> {
        NonNull::from(&*self.memory.0).cast()
    }

    /// Keeps the memory alive beyond the array.
    pub fn share(&self) -> Arc<Memory> {
        self.memory.clone()
    }

    /// Whether somebody else holds a share of the memory.
    pub fn is_held(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }

    /// The elements, to be changed; `None` while somebody else holds the memory.
    pub fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let memory = Arc::get_mut(&mut self.memory)?;
        let first = memory.0.as_mut_ptr().cast::<u8>();
        // SAFETY: `Line` is `repr(C)` and has no padding, so the lines are that many initialised bytes, and nobody else has
        // a reference to them.
        Some(unsafe { std::slice::from_raw_parts_mut(first, self.bytes) })
    }

    /// The elements.
    ///
    /// # Safety
    /// Nothing writes to the memory while the result lives: the call that was given the pointer is over.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: as many initialised bytes, and the caller says that nobody writes.
        unsafe { std::slice::from_raw_parts(self.pointer().as_ptr(), self.bytes) }
    }

    /// Takes a tensor's elements over. Memory that somebody else still holds is left to them, and new memory used.
    ///
    /// # Errors
    /// Where type or shape differ from the array's.
    pub fn write(&mut self, tensor: &Tensor) -> Result<(), String> {
        if tensor.dtype() != self.dtype || tensor.shape() != self.shape {
            let (found, shape) = (tensor.dtype(), tensor.shape());
            return Err(format!("expected {} {:?}, found {found} {shape:?}", self.dtype, self.shape));
        }
        self.own()?;
        let Some(bytes) = self.bytes_mut() else { return Err("the memory is in use".to_owned()) };
        match tensor.data() {
            Data::F16(v) => put(bytes, v, |v| v.to_ne_bytes()),
            Data::F32(v) => put(bytes, v, |v| v.to_ne_bytes()),
            Data::I32(v) => put(bytes, v, |v| v.to_ne_bytes()),
            other => return Err(format!("Core ML's arrays cannot hold {}", other.dtype())),
        }
        Ok(())
    }

    /// Replaces memory that somebody else still holds by memory of its own.
    pub fn own(&mut self) -> Result<(), String> {
        if self.is_held() {
            *self = Self::new(self.dtype, &self.shape)?;
        }
        Ok(())
    }

    /// The elements as a tensor.
    ///
    /// # Safety
    /// As [`bytes`](Self::bytes).
    pub unsafe fn read(&self) -> Result<Tensor, String> {
        // SAFETY: the caller's.
        tensor(self.dtype, &self.shape, unsafe { self.bytes() })
    }
}

fn put<T: Copy, const N: usize>(bytes: &mut [u8], values: &[T], encode: impl Fn(T) -> [u8; N]) {
    for (place, &value) in bytes.chunks_exact_mut(N).zip(values) {
        place.copy_from_slice(&encode(value));
    }
}

/// A tensor from dense elements in the machine's byte order.
fn tensor(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    let two = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    let four = || bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let data = match dtype {
        Dtype::F16 => Data::F16(two().map(f16::from_ne_bytes).collect()),
        Dtype::F32 => Data::F32(four().map(f32::from_ne_bytes).collect()),
        Dtype::I32 => Data::I32(four().map(i32::from_ne_bytes).collect()),
        other => return Err(format!("Core ML's arrays cannot hold {other}")),
    };
    if shape.iter().product::<usize>() != data.len() {
        return Err(format!("{} elements for shape {shape:?}", data.len()));
    }
    Ok(Tensor::new(shape, data))
}

/// An array as somebody else laid it out.
#[derive(Clone, Debug)]
pub struct Strided {
    /// The element type.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    pub strides: Vec<i64>,
    /// The memory from the first element on.
    pub bytes: Vec<u8>,
}

impl Strided {
    /// The elements, dense.
    ///
    /// # Errors
    /// Where strides are negative, of another rank, let two elements share a place, or point beyond the memory.
    pub fn gather(&self) -> Result<Tensor, String> {
        let element = element_bytes(self.dtype).ok_or_else(|| format!("an array of {} cannot be read", self.dtype))?;
        let strides = self.checked_strides()?;
        let count = self.shape.iter().try_fold(element, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_BYTES);
        let count = count.ok_or_else(|| format!("an array of shape {:?} is too large", self.shape))? / element;
        if count == 0 {
            return tensor(self.dtype, &self.shape, &[]);
        }
        let last =
            self.shape.iter().zip(&strides).try_fold(0usize, |n, (d, s)| n.checked_add((d - 1).checked_mul(*s)?));
        let end = last.and_then(|n| n.checked_add(1)?.checked_mul(element));
        if end.is_none_or(|end| end > self.bytes.len()) {
            return Err(format!(
                "strides {:?} of shape {:?} reach beyond its {} bytes",
                self.strides,
                self.shape,
                self.bytes.len()
            ));
        }
        let mut dense = Vec::with_capacity(count * element);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let at = element * index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>();
            dense.extend_from_slice(&self.bytes[at..at + element]);
            for axis in (0..index.len()).rev() {
                index[axis] += 1;
                if index[axis] < self.shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        tensor(self.dtype, &self.shape, &dense)
    }

    fn checked_strides(&self) -> Result<Vec<usize>, String> {
        let wrong = |what: &str| format!("strides {:?} of shape {:?} {what}", self.strides, self.shape);
        if self.strides.len() != self.shape.len() {
            return Err(wrong("are of another rank"));
        }
        let strides: Vec<usize> = self.strides.iter().filter_map(|&s| usize::try_from(s).ok()).collect();
        if strides.len() != self.strides.len() {
            return Err(wrong("run backwards"));
        }
        // Sorted by stride, each dimension must step over all that the smaller ones reach.
        let mut axes: Vec<_> = self.shape.iter().zip(&strides).filter(|(d, _)| **d > 1).collect();
        axes.sort_by_key(|(_, s)| **s);
        let mut reach = 1usize;
        for (&dimension, &stride) in axes {
            if stride < reach {
                return Err(wrong("let elements share a place"));
            }
            reach = stride.saturating_mul(dimension - 1).saturating_add(reach);
        }
        Ok(strides)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn arrays_are_aligned_and_replaced_while_held() {
        let mut array = Array::new(Dtype::F16, &[1, 3]).unwrap();
        assert_eq!(array.pointer().as_ptr() as usize % ALIGNMENT, 0);
        let tensor = |v: f32| Tensor::from_f32(&[1, 3], vec![v; 3], Dtype::F16);
        array.write(&tensor(1.0)).unwrap();
        let (held, before) = (array.share(), array.pointer());
        array.write(&tensor(2.0)).unwrap();
        assert_ne!(array.pointer(), before, "what is held is not written to");
        drop(held);
        let before = array.pointer();
        array.write(&tensor(3.0)).unwrap();
        assert_eq!(array.pointer(), before, "what is not held is used again");
        // SAFETY: nobody has the pointer.
        assert_eq!(unsafe { array.read() }.unwrap(), tensor(3.0));
        let error = array.write(&Tensor::from_f32(&[3], vec![0.0; 3], Dtype::F16)).unwrap_err();
        assert_eq!(error, "expected fp16 [1, 3], found fp16 [3]");
    }

    #[test]
    fn sizes_and_types_are_bounded() {
        assert!(Array::new(Dtype::F16, &[usize::MAX, 2]).is_err());
        assert!(Array::new(Dtype::F32, &[1 << 20, 1 << 20]).is_err());
        assert!(Array::new(Dtype::String, &[1]).is_err());
        assert_eq!(Array::new(Dtype::I32, &[2, 3, 4]).unwrap().strides(), [12, 4, 1]);
        assert!(Array::new(Dtype::F16, &[0, 4]).unwrap().bytes_mut().unwrap().is_empty());
    }

    fn strided(shape: &[usize], strides: &[i64], elements: usize) -> Strided {
        let bytes = (0..elements as i32).flat_map(i32::to_ne_bytes).collect();
        Strided { dtype: Dtype::I32, shape: shape.to_vec(), strides: strides.to_vec(), bytes }
    }

    #[test]
    fn padding_is_left_out_and_bad_strides_are_named() {
        // Three channels, one element each, rows padded to 16: how a Neural Engine lays `[1, 3, 1, 1]` of four bytes out.
        let padded = strided(&[1, 3, 1, 1], &[48, 16, 16, 1], 48).gather().unwrap();
        assert_eq!(padded, Tensor::new(&[1, 3, 1, 1], Data::I32(vec![0, 16, 32])));
        for (shape, strides, says) in [
            (&[2, 3][..], &[3, 1, 1][..], "another rank"),
            (&[2, 3], &[-3, 1], "run backwards"),
            (&[2, 3], &[2, 1], "share a place"),
            (&[2, 3], &[0, 1], "share a place"),
            (&[2, 3], &[4, 1], "beyond its 24 bytes"),
            (&[2, 3], &[i64::MAX, 1], "beyond its 24 bytes"),
        ] {
            let error = strided(shape, strides, 6).gather().unwrap_err();
            assert!(error.contains(says), "{strides:?}: {error}");
        }
        assert!(strided(&[usize::MAX, 9], &[1, 1], 6).gather().is_err());
        assert!(strided(&[0, 9], &[9, 1], 0).gather().unwrap().data().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_scattered_is_gathered(
            dims in prop::collection::vec((1usize..4, 0usize..3), 0..5),
            order in any::<prop::sample::Index>(),
        ) {
            // Axes nested in some order, each padded.
            let mut axes: Vec<usize> = (0..dims.len()).collect();
            if !axes.is_empty() {
                let by = order.index(axes.len());
                axes.rotate_left(by);
            }
            let mut strides = vec![0i64; dims.len()];
            let mut step = 1usize;
            for &axis in axes.iter().rev() {
                strides[axis] = step as i64;
                step *= dims[axis].0 + dims[axis].1;
            }
            let shape: Vec<usize> = dims.iter().map(|d| d.0).collect();
            let found = strided(&shape, &strides, step).gather().unwrap();
            let Data::I32(found) = found.data() else { panic!() };
            for (n, &value) in found.iter().enumerate() {
                let mut rest = n;
                let mut at = 0;
                for axis in (0..shape.len()).rev() {
                    at += (rest % shape[axis]) as i64 * strides[axis];
                    rest /= shape[axis];
                }
                prop_assert_eq!(i64::from(value), at);
            }
        }
    }
}
