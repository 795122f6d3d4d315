//! What targets and seeds agree on: how several parts lie in one input.
//!
//! A fuzzer mutates one run of bytes. Where a target needs several (a package is three files), each part but the last is
//! preceded by its length in four little-endian bytes. A length beyond the end means all that is left, so that every
//! input has all of its parts and none is wasted.

/// The parts of an input.
pub fn split<const N: usize>(mut data: &[u8]) -> [&[u8]; N] {
    std::array::from_fn(|i| {
        if i + 1 == N {
            return data;
        }
        let (length, rest) =
            data.split_first_chunk::<4>().map_or((0, data), |(l, rest)| (u32::from_le_bytes(*l) as usize, rest));
        let (part, rest) = rest.split_at(length.min(rest.len()));
        data = rest;
        part
    })
}

/// An input of those parts.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for (i, part) in parts.iter().enumerate() {
        if i + 1 < parts.len() {
            data.extend((part.len() as u32).to_le_bytes());
        }
        data.extend(*part);
    }
    data
}
