//! `check`: a package without its source.

mod common;

use std::fs;

use common::*;
use serde_json::Value;

fn package() -> (Bundle, String) {
    let bundle = Bundle::build(&fixture(MINIATURE), &["--topology", "0-2,2-4"]);
    let path = bundle.path.join("layers/00-02.mlpackage").to_str().unwrap().to_owned();
    (bundle, path)
}

#[test]
fn a_package_of_ours_is_well_formed_and_has_no_cliff() {
    let (_bundle, path) = package();
    let value: Value = serde_json::from_str(&succeed(&["check", &path, "--json", "--chip", "M1"])).unwrap();
    assert_eq!(value["well_formed"], true);
    let cliffs = value["findings"].as_array().unwrap().iter().filter(|f| f["check"] == "cliffs").count();
    assert_eq!(cliffs, 0, "{value:#}");
    let total = value["placement"]["total"].as_u64().unwrap();
    let listed: usize =
        value["placement"]["functions"].as_array().unwrap().iter().map(|f| f["ops"].as_array().unwrap().len()).sum();
    assert_eq!(total as usize, listed);
    assert!(total > 100);
    let text = succeed(&["check", &path]);
    assert!(text.contains("predicted") && !text.contains("passed"), "{text}");
}

/// A slice of the last axis that does not begin at 0 is a cliff before the M4 and none from it.
#[test]
fn cliffs_are_found_and_depend_on_the_chip() {
    use anemone_mil::ir::{Dtype, Literal, TensorType};
    use anemone_mil::{FunctionBuilder, package, program, validate};
    let mut f = FunctionBuilder::new("main", "CoreML8").unwrap();
    let x = f.input("x", TensorType::new(Dtype::F16, &[1, 8, 4, 64])).unwrap();
    let slice = [
        ("x", x.into()),
        ("begin", Literal::i32s(&[0, 0, 0, 32]).into()),
        ("end", Literal::i32s(&[0, 0, 0, 64]).into()),
        ("end_mask", Literal::bools(&[true, true, true, false]).into()),
    ];
    let half = f.op("slice_by_index", "upper_half", &slice).unwrap();
    let root = f.op("rsqrt", "root", &[("x", half.into()), ("epsilon", Literal::f16(0.0).into())]).unwrap();
    let valid = validate(program(vec![f.finish(&[("y", root)]).unwrap()], Default::default())).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cliffs.mlpackage");
    package::write(&valid, &path).unwrap();
    let rules = |chip: &str| {
        let value: Value =
            serde_json::from_str(&succeed(&["check", path.to_str().unwrap(), "--json", "--chip", chip])).unwrap();
        let found = value["findings"].as_array().unwrap().clone();
        let of = found.iter().filter(|f| f["check"] == "cliffs").map(|f| f["rule"].as_str().unwrap().to_owned());
        of.collect::<Vec<_>>()
    };
    assert_eq!(rules("M3"), ["slice-begin-last-axis", "vanishing-epsilon"]);
    assert_eq!(rules("M4"), ["vanishing-epsilon"]);
}

#[test]
fn a_broken_package_fails_and_the_reports_say_so() {
    let (bundle, path) = package();
    let folder = tempfile::tempdir().unwrap();
    let (junit, sarif) = (folder.path().join("j.xml"), folder.path().join("s.sarif"));
    let args = ["check", &path, "--junit", junit.to_str().unwrap(), "--sarif", sarif.to_str().unwrap()];
    succeed(&args);
    assert!(fs::read_to_string(&junit).unwrap().contains("failures=\"0\""));
    let model = bundle.path.join("layers/00-02.mlpackage/Data/com.apple.CoreML/model.mlmodel");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let out = anemone(&args);
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(fs::read_to_string(&junit).unwrap().contains("<failure"));
    let value: Value = serde_json::from_slice(&fs::read(&sarif).unwrap()).unwrap();
    assert_eq!(value["version"], "2.1.0");
    let result = &value["runs"][0]["results"][0];
    assert_eq!(result["level"], "error");
    let index = result["ruleIndex"].as_u64().unwrap() as usize;
    assert_eq!(value["runs"][0]["tool"]["driver"]["rules"][index]["id"], result["ruleId"]);
    refuse(&["check", "nowhere.mlpackage"], &["nowhere.mlpackage"]);
    let out = anemone(&["check", &path, "--chip", "M9"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("M1, M2, M3, M4, M5"));
}
