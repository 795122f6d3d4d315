//! A package of anyone's is refused with an error, or it prints, its constants decode, and what our writer makes of it reads
//! back as the same program.
#![no_main]

use anemone_fuzz::{FOLDER, package};
use anemone_mil::text::to_text;
use anemone_mil::{open, read, validate, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let package = package(data);
    let Ok((program, _)) = open(&package) else { return };
    let text = to_text(&program);
    // Lenient in what is read, strict in what is written: only what is valid by our own rules goes on.
    let Ok(valid) = read(&package).map_err(drop).and_then(|p| validate(p).map_err(drop)) else { return };
    let again = FOLDER.path().join("written.mlpackage");
    let _ = std::fs::remove_dir_all(&again);
    write(&valid, &again).expect("what is valid can be written");
    assert_eq!(to_text(&read(&again).expect("what our writer wrote is read")), text);
});
