//! A file of anyone's is refused with an error, or every tensor of it decodes and a copy of it reads back the same.
#![no_main]

use anemone_gguf::Gguf;
use anemone_gguf::writer::Writer;
use libfuzzer_sys::fuzz_target;

/// Elements decoded at most: the time of one run is bounded by this, not by what a file claims.
const ELEMENTS: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(data.to_vec()) else { return };
    let mut left = ELEMENTS;
    for info in gguf.tensors() {
        let tensor = gguf.tensor(&info.name).expect("what is listed is there");
        if tensor.rows() > 0 {
            let mut row = vec![0.0; tensor.row_len().min(left)];
            if row.len() == tensor.row_len() {
                tensor.dequantize_row(tensor.rows() - 1, &mut row).expect("the last row is a row");
            }
        }
        if info.elements() <= left {
            left -= info.elements();
            assert_eq!(tensor.dequantize().len(), info.elements());
        }
    }
    let Ok(bytes) = Writer::copy_of(&gguf).to_bytes() else { return };
    let copy = Gguf::from_bytes(bytes).expect("what our writer wrote is read");
    assert_eq!(copy.tensors().len(), gguf.tensors().len());
    for info in gguf.tensors() {
        assert_eq!(copy.tensor(&info.name).unwrap().bytes(), gguf.tensor(&info.name).unwrap().bytes(), "{}", info.name);
    }
});
