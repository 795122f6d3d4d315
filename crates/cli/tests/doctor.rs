//! `doctor`: what is here is said, what is not is said with its reason, and the self-test can fail.

mod common;

use common::*;
use serde_json::Value;

#[test]
fn what_is_not_here_is_said_with_its_reason() {
    let table = succeed(&["doctor"]);
    for what in ["system", "core ml", "portable runtime", "energy"] {
        assert!(table.lines().any(|line| line.starts_with(what)), "{what}: {table}");
    }
    if cfg!(target_os = "macos") {
        assert!(table.contains("core ml on neural engine and cpu"), "{table}");
    } else {
        assert!(table.contains("not here: Core ML is a part of macOS"), "{table}");
        refuse(
            &["doctor", "--self-test", "--runtime", "coreml"],
            &["Core ML is a part of macOS", "--runtime portable"],
        );
        refuse(&["generate", "nowhere", "--prompt", "x", "--runtime", "coreml"], &["Core ML is a part of macOS"]);
    }
}

#[test]
fn the_self_test_compares_shards_and_every_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let args = ["doctor", "--self-test", "--op-by-op", "--runtime", "portable", "--numerics", "ane", "--output"];
    let table = succeed(&[&args[..], &[file.to_str().unwrap()]].concat());
    assert!(table.contains("layers/00-02.mlpackage, 8 tokens a call") && !table.contains("DIFFERS"), "{table}");
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((&report["runtime"], &report["reference"]), (&"portable ane".into(), &"portable exact".into()));
    // Two shards in two functions, and the head; fp16 shows in each.
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|row| row["max_abs"].as_f64().unwrap() > 0.0), "{rows:?}");
    let ops = report["ops"].as_array().unwrap();
    assert!(ops.len() > 100, "{}", ops.len());
}

#[test]
fn observations_are_exported_from_evidence_and_asked_for_where_there_are_none() {
    let model = fixture(MINIATURE);
    let bundle = Bundle::build(&model, &[]);
    refuse(&["observations", "export", bundle.str()], &["no compute plan is in its evidence", "on a Mac"]);
    let predicted =
        ["gate", bundle.str(), "--source", model.to_str().unwrap(), "--only", "residency", "--runtime", "portable"];
    succeed(&predicted);
    refuse(&["observations", "export", bundle.str()], &["no compute plan"]);
    // A finding as a Mac would append it.
    let evidence = bundle.path.join("evidence/residency.jsonl");
    let lines = std::fs::read_to_string(&evidence).unwrap();
    let mut finding: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    finding["figures"] = serde_json::json!({"ops": [], "observations": [{"id": "a", "source": "OWN", "saw": "cpu"}]});
    std::fs::write(&evidence, format!("{lines}{finding}\n")).unwrap();
    let exported = succeed(&["observations", "export", bundle.str(), "--source", "ME"]);
    let exported: Value = serde_json::from_str(&exported).unwrap();
    assert_eq!(exported, serde_json::json!([{"id": "a", "source": "ME", "saw": "cpu"}]));
}
