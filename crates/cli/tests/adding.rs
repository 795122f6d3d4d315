//! What `docs/architecture.md` says of adding an op or an architecture: where their names stand in the code is where a new one
//! has to be put, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anemone_mil::ops;

/// Files of Rust under `crates/<each>/src`, by their path in the repository, without comments and tests.
fn sources(crates: &[&str]) -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders: Vec<PathBuf> = crates.iter().map(|name| root.join("crates").join(name).join("src")).collect();
    let mut found = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&entry).unwrap();
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                let code = code.lines().map(|line| line.split("//").next().unwrap_or_default());
                let name = entry.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                found.insert(name, code.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    assert!(found.len() > crates.len(), "no sources under {}", root.display());
    found
}

fn op_names() -> BTreeSet<&'static str> {
    ops::all().map(|op| op.name).collect()
}

/// An op is its row in the table and its kernel. The rest of `mil` and `exec` knows none by name but these.
#[test]
fn machinery_names_no_op_but_those_that_are_unlike_all_others() {
    let unlike = |file: &str| -> &[&str] {
        match file {
            // Values that are known before a program runs have their own reader.
            "crates/mil/src/decode.rs" => &["const", "constexpr_"],
            "crates/mil/src/package/encode.rs" => &["const"],
            "crates/exec/src/portable/constants.rs" => &["constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"],
            // What a builder makes by itself: constants, copies of inputs, the writing of a state.
            "crates/mil/src/build.rs" => &["const", "identity", "write_state"],
            // Two ops whose results are pairs of which one may be left out.
            "crates/mil/src/validate.rs" => &["const", "constexpr_", "topk"],
            // Caches are recognised where they are read, masked and written.
            "crates/exec/src/portable/plan.rs" => &["read_state", "write_state"],
            // Two kinds of ops have numeric cliffs of their own.
            "crates/exec/src/portable/headroom.rs" => &["matmul", "slice_by_index", "slice_by_size"],
            _ => &[],
        }
    };
    let mut wrong = Vec::new();
    for (file, code) in sources(&["mil", "exec"]) {
        // The fast runtime recognises groups of ops; what its rules do not know runs one by one.
        let home = [
            "crates/mil/src/ops/",
            "crates/mil/src/testing.rs",
            "crates/exec/src/portable/kernels/",
            "crates/exec/src/fast/",
        ];
        if home.iter().any(|home| file.starts_with(home)) {
            continue;
        }
        let named = op_names().into_iter().filter(|name| code.contains(&format!("\"{name}\"")));
        let new =
            named.filter(|name| !unlike(&file).iter().any(|u| name == u || u.ends_with('_') && name.starts_with(u)));
        wrong.extend(new.map(|name| format!("{file} names `{name}`")));
    }
    assert!(wrong.is_empty(), "adding an op would touch more than docs/architecture.md says: {wrong:#?}");
}

/// Every op of the table that runs has its kernel under the one folder.
#[test]
fn every_op_has_a_kernel_where_kernels_are() {
    let kernels: String =
        sources(&["exec"]).into_iter().filter(|(f, _)| f.contains("/kernels/")).map(|(_, c)| c).collect();
    let states = ["read_state", "write_state"];
    let without = ops::all().filter(|op| !op.is_constant() && !states.contains(&op.name));
    let without: Vec<_> = without.map(|op| op.name).filter(|name| !kernels.contains(&format!("\"{name}\""))).collect();
    assert!(without.is_empty(), "no kernel: {without:?}");
}

/// An architecture is its file and row in `lower`, and its independent reading in `reference`.
#[test]
fn architectures_are_named_where_they_are_lowered_and_where_they_are_read_again() {
    let all = ["gguf", "mil", "bundle", "exec", "coreml", "lower", "reference", "chat", "gate", "cli"];
    // The name of a tokenizer's kind is that of an architecture, and the published runtime runs one architecture alone.
    let other = ["crates/chat/src/tokenizer/", "crates/gate/src/runtime_meta.rs"];
    let home = ["crates/lower/src/arch/", "crates/reference/src/"];
    let mut wrong = Vec::new();
    for (file, code) in sources(&all) {
        if home.iter().chain(&other).any(|place| file.starts_with(place)) {
            continue;
        }
        for architecture in anemone_lower::arch::ALL {
            if code.contains(&format!("\"{}\"", architecture.name())) {
                wrong.push(format!("{file} names `{}`", architecture.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "adding an architecture would touch more than docs/architecture.md says: {wrong:#?}");
}
