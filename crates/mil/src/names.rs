//! Names that Core ML accepts.

use std::borrow::Cow;

/// Words of MIL's own text form, which no value may be called.
const RESERVED: &[&str] = &[
    "any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "bf16", "fp16",
    "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "state",
];

/// Whether a name is `[A-Za-z_][A-Za-z0-9_]*`.
pub fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether a name is a word that MIL keeps for itself.
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// The nearest acceptable name: other characters become `_`, a leading digit gets `prefix`, a reserved word a suffix.
pub fn sanitised(name: &str, prefix: &str) -> String {
    let mut out: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if !out.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        out.insert_str(0, prefix);
    }
    if is_reserved(&out) {
        out.push_str("_workaround");
    }
    out
}

/// The name as the text form writes it: bare where it is an identifier, otherwise quoted.
pub(crate) fn quoted(name: &str) -> Cow<'_, str> {
    if is_identifier(name) { Cow::Borrowed(name) } else { Cow::Owned(format!("{name:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitised_names_are_identifiers() {
        assert_eq!(sanitised("a.b/c", "var_"), "a_b_c");
        assert_eq!(sanitised("0.weight", "var_"), "var_0_weight");
        assert_eq!(sanitised("", "op_"), "op_");
        assert_eq!(sanitised("state", "var_"), "state_workaround");
        assert_eq!(sanitised("ünder", "var_"), "_nder");
    }
}
