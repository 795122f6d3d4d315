//! A text is refused with its line, or it prints, and what is printed reads back as the same program.
#![no_main]

use anemone_mil::text::{parse, to_text};
use anemone_mil::{validate, validate_foreign};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(program) = parse(text) else { return };
    let printed = to_text(&program);
    let again = parse(&printed).unwrap_or_else(|e| panic!("what was printed does not parse: {e}\n{printed}"));
    assert_eq!(to_text(&again), printed);
    let strict = validate(again).is_ok();
    assert!(validate_foreign(program).is_ok() || !strict, "what is written strictly is refused leniently");
});
