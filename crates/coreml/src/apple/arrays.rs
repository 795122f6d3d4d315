//! `MLMultiArray` over our memory, and out of Core ML's.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::NonNull;

use anemone_mil::ir::Dtype;
use block2::RcBlock;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2_core_ml::{MLMultiArray, MLMultiArrayDataType};
use objc2_foundation::{NSArray, NSInteger, NSNumber};

use super::{failure, unexpected, untyped};
use crate::array::{Array, Strided};
use crate::failure::Failure;

/// Core ML's name of an element type that crosses its border.
fn code(dtype: Dtype) -> Option<MLMultiArrayDataType> {
    match dtype {
        Dtype::F16 => Some(MLMultiArrayDataType::Float16),
        Dtype::F32 => Some(MLMultiArrayDataType::Float32),
        Dtype::I32 => Some(MLMultiArrayDataType::Int32),
        _ => None,
    }
}

/// The element type that Core ML names so; `None` for those that programs do not have.
pub fn dtype(code: MLMultiArrayDataType) -> Option<Dtype> {
    [Dtype::F16, Dtype::F32, Dtype::I32].into_iter().find(|&d| self::code(d) == Some(code))
}

fn numbers(values: &[usize]) -> Retained<NSArray<NSNumber>> {
    let numbers: Vec<_> = values.iter().map(|&v| NSNumber::new_usize(v)).collect();
    NSArray::from_retained_slice(&numbers)
}

/// Sizes of a shape; a negative one, which cannot be, counts as 0.
pub fn sizes(numbers: &NSArray<NSNumber>) -> Vec<usize> {
    numbers.iter().map(|n| usize::try_from(n.as_isize()).unwrap_or_default()).collect()
}

/// An `MLMultiArray` that reads and writes the array's memory, and keeps it alive for as long as anyone holds it.
pub fn wrap(array: &Array) -> Result<Retained<MLMultiArray>, Failure> {
    let code = code(array.dtype()).ok_or_else(|| unexpected("an element type that arrays cannot hold"))?;
    let (shape, strides) = (numbers(array.shape()), numbers(&array.strides()));
    // The block owns a share of the memory; it is freed with the last reference to the block, which Core ML drops after it
    // has called it.
    let share = RefCell::new(Some(array.share()));
    let release = RcBlock::new(move |_: NonNull<c_void>| drop(share.borrow_mut().take()));
    // SAFETY: shape, strides and type describe the array, and `release` keeps its memory alive.
    let made = unsafe {
        MLMultiArray::initWithDataPointer_shape_dataType_strides_deallocator_error(
            MLMultiArray::alloc(),
            untyped(array.pointer()),
            &shape,
            code,
            &strides,
            Some(&release),
        )
    };
    made.map_err(|error| failure(&error))
}

/// Copies an array of Core ML's out, as it lies there.
pub fn copy(array: &MLMultiArray) -> Result<Strided, Failure> {
    // SAFETY: plain getters.
    let (code, shape, strides) = unsafe { (array.dataType(), array.shape(), array.strides()) };
    let dtype = dtype(code).ok_or_else(|| unexpected(&format!("an array of element type {}", code.0)))?;
    let bytes = RefCell::new(Vec::new());
    let read = RcBlock::new(|pointer: NonNull<c_void>, size: NSInteger| {
        let size = usize::try_from(size).unwrap_or_default();
        // SAFETY: Core ML says that so many bytes may be read there while the block runs.
        bytes
            .borrow_mut()
            .extend_from_slice(unsafe { std::slice::from_raw_parts(pointer.as_ptr().cast::<u8>(), size) });
    });
    // SAFETY: the block is called before the call returns, and not kept.
    unsafe { array.getBytesWithHandler(&read) };
    drop(read);
    let strides = strides.iter().map(|n| n.as_i64()).collect();
    Ok(Strided { dtype, shape: sizes(&shape), strides, bytes: bytes.into_inner() })
}
