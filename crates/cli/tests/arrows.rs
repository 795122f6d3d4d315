//! Keeps the crates' arrows: each depends on exactly what the table of `docs/architecture.md` says it sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The table's rows: crate folder to the crates it sees.
fn documented(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let rows = text.lines().filter_map(|l| l.strip_prefix("| `crates/"));
    rows.map(|row| {
        let (name, cells) = row.split_once('`').unwrap();
        let sees = cells.trim_end_matches([' ', '|']).rsplit('|').next().unwrap().trim();
        let sees = if sees == "nothing" { BTreeSet::new() } else { sees.split(", ").map(str::to_owned).collect() };
        (name.to_owned(), sees)
    })
    .collect()
}

#[test]
fn crates_depend_on_what_the_architecture_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let metadata = MetadataCommand::new().manifest_path(root.join("Cargo.toml")).no_deps().exec().unwrap();
    let folder = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut found = BTreeMap::new();
    let crates = root.join("crates");
    for package in metadata.packages.iter().filter(|p| p.manifest_path.as_std_path().starts_with(&crates)) {
        let ours = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        let ours = ours.filter_map(|d| d.path.as_ref()).map(|p| folder(p.as_std_path())).collect();
        found.insert(folder(package.manifest_path.parent().unwrap().as_std_path()), ours);
    }
    let mut expected = documented(root);
    let all: BTreeSet<String> = expected.keys().filter(|k| *k != "cli").cloned().collect();
    for sees in expected.values_mut().filter(|s| s.contains("all")) {
        *sees = all.clone();
    }
    assert_eq!(found, expected);
}
