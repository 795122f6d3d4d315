//! The element types of a tensor.
//!
//! ggml stores a row as a sequence of *blocks*: a fixed number of elements in a fixed number of bytes, with the scales
//! that the elements share inside the block. Plain types are blocks of one element. The numbers below are the type ids
//! and sizes of `ggml.h` and `ggml-common.h`; ids missing from the table were withdrawn (4, 5, 31 to 33, 36 to 38).

use std::fmt;

macro_rules! block_types {
    ($($name:ident = $id:literal, $len:literal elements in $bytes:literal bytes, $doc:literal;)*) => {
        /// A tensor's element type, named as ggml names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(non_camel_case_types)]
        pub enum BlockType { $(#[doc = $doc] $name,)* }

        impl BlockType {
            /// Every type, by ascending id.
            pub const ALL: &[BlockType] = &[$(BlockType::$name,)*];

            /// The type with this id, or `None` for an id that ggml never gave or has withdrawn.
            pub const fn from_id(id: u32) -> Option<BlockType> {
                match id { $($id => Some(BlockType::$name),)* _ => None }
            }

            /// The id in the file.
            pub const fn id(self) -> u32 {
                match self { $(BlockType::$name => $id,)* }
            }

            /// ggml's name, in capitals.
            pub const fn name(self) -> &'static str {
                match self { $(BlockType::$name => stringify!($name),)* }
            }

            /// Elements in one block; a row is a whole number of blocks.
            pub const fn block_len(self) -> usize {
                match self { $(BlockType::$name => $len,)* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> usize {
                match self { $(BlockType::$name => $bytes,)* }
            }
        }
    };
}

block_types! {
    F32 = 0, 1 elements in 4 bytes, "IEEE single precision.";
    F16 = 1, 1 elements in 2 bytes, "IEEE half precision.";
    Q4_0 = 2, 32 elements in 18 bytes, "4 bits, symmetric about 8, one f16 scale.";
    Q4_1 = 3, 32 elements in 20 bytes, "4 bits, f16 scale and minimum.";
    Q5_0 = 6, 32 elements in 22 bytes, "5 bits, symmetric about 16, one f16 scale.";
    Q5_1 = 7, 32 elements in 24 bytes, "5 bits, f16 scale and minimum.";
    Q8_0 = 8, 32 elements in 34 bytes, "8 bits, one f16 scale.";
    Q8_1 = 9, 32 elements in 36 bytes, "8 bits, one f16 scale, and the scaled sum that dot products want.";
    Q2_K = 10, 256 elements in 84 bytes, "2 bits, sixteen 4-bit scales and minima.";
    Q3_K = 11, 256 elements in 110 bytes, "3 bits, sixteen 6-bit scales.";
    Q4_K = 12, 256 elements in 144 bytes, "4 bits, eight 6-bit scales and minima.";
    Q5_K = 13, 256 elements in 176 bytes, "5 bits, eight 6-bit scales and minima.";
    Q6_K = 14, 256 elements in 210 bytes, "6 bits, sixteen 8-bit scales.";
    Q8_K = 15, 256 elements in 292 bytes, "8 bits, one f32 scale, and the sums that dot products want.";
    IQ2_XXS = 16, 256 elements in 66 bytes, "Points of an 8-dimensional grid of 256, 2.06 bits per element.";
    IQ2_XS = 17, 256 elements in 74 bytes, "Points of an 8-dimensional grid of 512, 2.31 bits per element.";
    IQ3_XXS = 18, 256 elements in 98 bytes, "Points of a 4-dimensional grid of 256, 3.06 bits per element.";
    IQ1_S = 19, 256 elements in 50 bytes, "Ternary points of an 8-dimensional grid of 2048, 1.56 bits per element.";
    IQ4_NL = 20, 32 elements in 18 bytes, "4 bits into a table of sixteen unevenly spaced values, one f16 scale.";
    IQ3_S = 21, 256 elements in 110 bytes, "Points of a 4-dimensional grid of 512, 3.44 bits per element.";
    IQ2_S = 22, 256 elements in 82 bytes, "Points of an 8-dimensional grid of 1024, 2.56 bits per element.";
    IQ4_XS = 23, 256 elements in 136 bytes, "As IQ4_NL, with eight 6-bit scales.";
    I8 = 24, 1 elements in 1 bytes, "Signed 8-bit integer.";
    I16 = 25, 1 elements in 2 bytes, "Signed 16-bit integer.";
    I32 = 26, 1 elements in 4 bytes, "Signed 32-bit integer.";
    I64 = 27, 1 elements in 8 bytes, "Signed 64-bit integer.";
    F64 = 28, 1 elements in 8 bytes, "IEEE double precision.";
    IQ1_M = 29, 256 elements in 56 bytes, "As IQ1_S, with more scales and a scattered f16 super-scale.";
    BF16 = 30, 1 elements in 2 bytes, "The upper half of an IEEE single.";
    TQ1_0 = 34, 256 elements in 54 bytes, "Ternary digits, five to a byte, one f16 scale.";
    TQ2_0 = 35, 256 elements in 66 bytes, "Ternary digits, four to a byte, one f16 scale.";
    MXFP4 = 39, 32 elements in 17 bytes, "OCP microscaling: E2M1 elements, one E8M0 scale.";
    NVFP4 = 40, 64 elements in 36 bytes, "E2M1 elements, one UE4M3 scale to sixteen.";
    Q1_0 = 41, 128 elements in 18 bytes, "One sign bit each, one f16 scale.";
}

impl BlockType {
    /// The bytes of `elements` consecutive elements, or `None` if they are not whole blocks or the size does not fit.
    pub fn bytes_of(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_len()) {
            return None;
        }
        (elements / self.block_len()).checked_mul(self.block_bytes())
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_types_correspond() {
        for &ty in BlockType::ALL {
            assert_eq!(BlockType::from_id(ty.id()), Some(ty));
        }
        for withdrawn in [4, 5, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
            assert_eq!(BlockType::from_id(withdrawn), None);
        }
    }

    #[test]
    fn only_whole_blocks_have_a_size() {
        assert_eq!(BlockType::Q4_K.bytes_of(512), Some(288));
        assert_eq!(BlockType::Q4_K.bytes_of(511), None);
        assert_eq!(BlockType::F32.bytes_of(usize::MAX), None);
    }
}
