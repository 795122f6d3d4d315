//! `build --reuse`: head and embedding of a baseline, by hash.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::*;

#[test]
fn a_fused_bundle_shares_the_head_of_its_baseline() {
    let model = fixture(MINIATURE);
    let single = Bundle::build(&model, &["--layers-per-shard", "1", "--head-slices", "2"]);
    let alone = Bundle::build(&model, &["--topology", "0-3,3-4", "--head-slices", "2"]);
    let fused = Bundle::build(&model, &["--topology", "0-3,3-4", "--head-slices", "2", "--reuse", single.str()]);
    // The same bundle as if everything had been made anew, and the same bytes on disk as the baseline's.
    assert_eq!(fs::read(alone.path.join("anemone.json")).unwrap(), fs::read(fused.path.join("anemone.json")).unwrap());
    for file in ["embedding.f16", "head/1.mlpackage/Data/com.apple.CoreML/weights/weight.bin"] {
        let (a, b) = (fs::metadata(single.path.join(file)).unwrap(), fs::metadata(fused.path.join(file)).unwrap());
        if a.dev() == b.dev() {
            assert_eq!(a.ino(), b.ino(), "{file} is a copy");
        }
    }
    fused.gate(&model, "contract");
}

#[test]
fn what_differs_is_named_and_nothing_is_left() {
    let model = fixture(MINIATURE);
    let single = Bundle::build(&model, &["--layers-per-shard", "1", "--head-slices", "2"]);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("fused");
    let build = |options: &[&str], words: &[&str]| {
        let mut args = vec!["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--reuse", single.str()];
        args.extend(options);
        refuse(&args, words);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    build(&["--head-slices", "3"], &["--reuse", "head slices"]);
    build(&["--head-slices", "2", "--weights", "fp16"], &["--reuse", "weights"]);
    build(&["--head-slices", "2", "--context", "64"], &["--reuse", "context"]);
    build(&["--head-slices", "2", "--tokens", "1"], &["--reuse", "tokens"]);
    let embedding = single.path.join("embedding.f16");
    let mut bytes = fs::read(&embedding).unwrap();
    bytes[7] ^= 1;
    fs::write(&embedding, bytes).unwrap();
    build(&["--head-slices", "2"], &["--reuse", "embedding.f16", "damaged"]);
    refuse(
        &["build", model.to_str().unwrap(), "-o", target.to_str().unwrap(), "--reuse", "nowhere"],
        &["--reuse", "nowhere"],
    );
}
