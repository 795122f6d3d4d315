//! What a value's declared type does to a freshly computed result: fp16 rounds where the numerics say so, and narrow
//! integers wrap.

use anemone_mil::ir::Dtype;
use half::f16;
use half::slice::HalfFloatSliceExt;

/// Rounds every element to the nearest fp16, ties to even; beyond 65504 to infinity.
pub fn to_f16(v: &mut [f32]) {
    let mut block = [f16::ZERO; 256];
    for v in v.chunks_mut(block.len()) {
        let block = &mut block[..v.len()];
        block.convert_from_f32_slice(v);
        block.convert_to_f32_slice(v);
    }
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
