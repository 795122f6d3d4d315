//! Every way to break a package that a checker should notice, one change at a time: each is refused, or accepted with a
//! warning that names it, and which of the two is what Core ML's own Python loader does.

mod common;
mod proto;

use std::fs;
use std::path::Path;

use anemone_mil::open;
use common::{model_file, weight_file, written};
use proto::{Node, Tree, text};

// Field numbers along the way to what is changed.
const DESCRIPTION: u32 = 2;
const PROGRAM: u32 = 502;
const FUNCTIONS: u32 = 2;
const ENTRY_VALUE: u32 = 2;
const BLOCKS: u32 = 3;
const OPERATIONS: u32 = 3;
const OP_INPUTS: u32 = 2;
const OP_OUTPUTS: u32 = 3;
const OP_ATTRIBUTES: u32 = 5;

enum Verdict {
    /// Opens without a word about it.
    Silent,
    /// Opens with a warning of this rule.
    Warned(&'static str),
    /// Does not open; the error contains this.
    Refused(&'static str),
}
use Verdict::{Refused, Silent, Warned};

#[track_caller]
fn check(change: impl FnOnce(&Path), verdict: Verdict) {
    let dir = tempfile::tempdir().unwrap();
    let package = written(dir.path());
    change(&package);
    match (open(&package), verdict) {
        (Ok((_, warnings)), Silent) => assert!(warnings.iter().all(|w| w.rule == "missing-default"), "{warnings:?}"),
        (Ok((valid, warnings)), Warned(rule)) => {
            assert!(warnings.iter().any(|w| w.rule == rule), "{warnings:?}");
            // Whatever was repaired, the program is one that its promises hold for.
            let again = anemone_mil::validate_foreign(valid.into_program());
            assert!(again.is_ok(), "{again:?}");
        }
        (Err(e), Refused(message)) => assert!(e.to_string().contains(message), "{e}"),
        (Ok((_, warnings)), Refused(_)) => panic!("opened with {warnings:?}"),
        (Err(e), _) => panic!("refused: {e}"),
    }
}

fn model(change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    move |package| {
        let path = model_file(package);
        let mut tree = Tree::parse(&fs::read(&path).unwrap());
        change(&mut tree);
        fs::write(&path, tree.bytes()).unwrap();
    }
}

fn program(change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    model(|m| m.enter(PROGRAM, change))
}

fn function(change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    program(|p| p.enter(FUNCTIONS, |entry| entry.enter(ENTRY_VALUE, change)))
}

fn block(change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    function(|f| f.enter(BLOCKS, |entry| entry.enter(ENTRY_VALUE, change)))
}

/// The name of an op's first output.
fn output_name(op: &Tree) -> String {
    match op.0.iter().find(|(n, _)| *n == OP_OUTPUTS) {
        Some((_, Node::Bytes(b))) => Tree::parse(b).text(1),
        _ => String::new(),
    }
}

/// Changes the op that defines a value; `store`, which defines none, is found by its kind.
fn op(output: &'static str, change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    block(move |b| {
        let is = |op: &Tree| if output == "store" { op.text(1) == "write_state" } else { output_name(op) == output };
        b.edit(OPERATIONS, is, change);
    })
}

/// Changes the binding of an op's parameter.
fn binding(output: &'static str, param: &'static str, change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    op(output, move |op| {
        op.edit(
            OP_INPUTS,
            |entry| entry.text(1) == param,
            |entry| entry.enter(ENTRY_VALUE, |arg| arg.enter(1, change)),
        );
    })
}

/// Changes the tensor type of an op's output.
fn output_type(output: &'static str, change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    op(output, |op| op.enter(OP_OUTPUTS, |named| named.enter(2, |ty| ty.enter(1, change))))
}

/// Changes the value of a `const` op.
fn constant(output: &'static str, change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    op(output, |op| op.edit(OP_ATTRIBUTES, |entry| entry.text(1) == "val", |entry| entry.enter(ENTRY_VALUE, change)))
}

fn description(change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    model(|m| m.enter(DESCRIPTION, change))
}

fn manifest(change: impl FnOnce(&mut serde_json::Value)) -> impl FnOnce(&Path) {
    move |package| {
        let path = package.join("Manifest.json");
        let mut json = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
    }
}

fn weights(change: impl FnOnce(&mut Vec<u8>)) -> impl FnOnce(&Path) {
    move |package| {
        let path = weight_file(package);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    }
}

/// Changes bytes of the record of the int8 weight: the blob of type 4.
fn record(at: usize, bytes: &'static [u8]) -> impl FnOnce(&Path) {
    weights(move |file| {
        let record = (64..file.len()).step_by(64).find(|&r| file[r..r + 8] == *b"\xef\xbe\xad\xde\x04\0\0\0").unwrap();
        file[record + at..record + at + bytes.len()].copy_from_slice(bytes);
    })
}

/// Changes the reference to the int8 weight.
fn blob(change: impl FnOnce(&mut Tree)) -> impl FnOnce(&Path) {
    binding("weight", "data", |b| b.enter(2, |value| value.enter(5, change)))
}

#[test]
fn untouched_it_opens_without_a_word() {
    check(|_| {}, Silent);
}

#[test]
fn manifests() {
    check(|p| fs::remove_file(p.join("Manifest.json")).unwrap(), Refused("Manifest.json"));
    check(|p| fs::remove_dir_all(weight_file(p).parent().unwrap()).unwrap(), Refused("there is no"));
    check(
        manifest(|m| m["rootModelIdentifier"] = "nobody".into()),
        Refused("rootModelIdentifier \"nobody\" names no entry"),
    );
    check(manifest(|m| m["fileFormatVersion"] = "2.0.0".into()), Refused("fileFormatVersion 2.0.0"));
    check(manifest(|m| m["fileFormatVersion"] = "1".into()), Refused("three numbers"));
    let no_description = |m: &mut serde_json::Value| {
        for (_, item) in m["itemInfoEntries"].as_object_mut().unwrap() {
            item.as_object_mut().unwrap().remove("description");
        }
    };
    check(manifest(no_description), Refused("description"));
    let out = |m: &mut serde_json::Value| {
        for (_, item) in m["itemInfoEntries"].as_object_mut().unwrap() {
            item["path"] = "../../shard.mlpackage".into();
        }
    };
    check(manifest(out), Refused("may not lead out"));
}

#[test]
fn broken_protobuf() {
    let append = |p: &Path| {
        let mut bytes = fs::read(model_file(p)).unwrap();
        bytes.extend([0xff, 0xff, 0xff]);
        fs::write(model_file(p), bytes).unwrap();
    };
    check(append, Refused("model, byte"));
}

#[test]
fn weight_files() {
    check(record(0, &[0; 4]), Refused("no record here"));
    check(record(4, &[3]), Refused("element type 3"));
    check(record(8, &[0, 1]), Refused("the record holds 256 bytes, int8[32, 16, 1, 1] needs 512"));
    check(record(16, &[0xff; 8]), Refused("lie outside of the file"));
    check(weights(|f| f[4] = 1), Refused("storage version 1"));
    check(weights(|f| f[0] = 0), Warned("blob-count"));
    // One byte further, and enough of them for the blob to stay inside of the file.
    let unaligned = |file: &mut Vec<u8>| {
        let record = (64..file.len()).step_by(64).find(|&r| file[r..r + 8] == *b"\xef\xbe\xad\xde\x04\0\0\0").unwrap();
        file[record + 16] += 1;
        file.push(0);
    };
    check(weights(unaligned), Warned("blob-alignment"));
    check(weights(|f| f.truncate(f.len() - 40)), Refused("lie outside of the file"));
    check(weights(Vec::clear), Refused("the header alone has 64"));
    let at_data = |b: &mut Tree| match b.get(2) {
        Node::Number(offset) => b.set(2, Node::Number(offset + 64)),
        Node::Bytes(_) => unreachable!(),
    };
    check(blob(at_data), Refused("no record here"));
    check(blob(|b| b.set(2, Node::Number(u64::MAX))), Refused("outside of the file"));
    check(blob(|b| b.set(1, text("@model_path/weights/other.bin"))), Refused("other.bin"));
    check(blob(|b| b.set(1, text("weights/weight.bin"))), Warned("blob-path"));
    check(blob(|b| b.set(1, text("@model_path/weights/../weights/weight.bin"))), Refused("may not lead out"));
    check(blob(|b| b.set(1, text("@model_path/weights/"))), Refused("no file name"));
}

#[test]
fn declared_types() {
    let channels = |ty: &mut Tree| {
        let dimension = Tree(vec![(1, Node::Bytes(vec![0x08, 7]))]);
        ty.remove(3);
        ty.0.extend((0..4).map(|_| (3, Node::Bytes(dimension.bytes()))));
    };
    check(output_type("projected", channels), Refused("error[output-type]"));
    check(output_type("projected", |ty| ty.set(1, Node::Number(11))), Refused("error[output-type]"));
    check(output_type("projected", |ty| ty.set(2, Node::Number(3))), Refused("rank 3 with 4 dimensions"));
    let five = |ty: &mut Tree| ty.enter(3, |d| d.enter(1, |c| c.set(1, Node::Number(5))));
    check(output_type("projected_bias", five), Warned("const-type"));
    check(op("weight", |op| op.remove(OP_OUTPUTS)), Refused("`weight`, which is not defined"));
}

#[test]
fn names() {
    check(binding("projected", "x", |b| b.set(1, text("zzz"))), Refused("`x` is bound to `zzz`, which is not defined"));
    let rename = |to: &'static str| {
        block(move |b| {
            b.edit(OPERATIONS, |op| output_name(op) == "norm", |op| op.enter(OP_OUTPUTS, |v| v.set(1, text(to))));
            b.edit(
                OPERATIONS,
                |op| output_name(op) == "normed",
                |op| {
                    op.edit(OP_INPUTS, |e| e.text(1) == "x", |e| e.enter(2, |a| a.enter(1, |b| b.set(1, text(to)))));
                },
            );
        })
    };
    check(rename("root"), Warned("duplicate-name"));
    check(rename("a.b/c"), Warned("identifier"));
    check(rename("tensor"), Warned("identifier"));
    check(op("hidden", |op| op.remove(OP_ATTRIBUTES)), Warned("op-name"));
    let last = |b: &mut Tree| {
        let is = |n: &(u32, Node)| match n {
            (OPERATIONS, Node::Bytes(op)) => output_name(&Tree::parse(op)) == "projected",
            _ => false,
        };
        let i = b.0.iter().position(is).unwrap();
        let op = b.0.remove(i);
        b.0.push(op);
    };
    check(block(last), Refused("only defined by a later op"));
    check(block(|b| b.set(2, text("nothing"))), Refused("output `nothing` is not defined"));
}

#[test]
fn ops_and_parameters() {
    check(op("hidden", |op| op.set(1, text("swishh"))), Refused("error[unknown-op]"));
    let twice = |op: &mut Tree| {
        let mut entry = match op.get(OP_INPUTS) {
            Node::Bytes(b) => Tree::parse(&b),
            Node::Number(_) => unreachable!(),
        };
        entry.set(1, text("extra"));
        op.0.push((OP_INPUTS, Node::Bytes(entry.bytes())));
    };
    check(op("hidden", twice), Refused("error[unknown-input]"));
    let without = |params: &'static [&'static str]| {
        move |op: &mut Tree| {
            op.0.retain(|(n, node)| match node {
                Node::Bytes(b) if *n == OP_INPUTS => !params.contains(&Tree::parse(b).text(1).as_str()),
                _ => true,
            });
        }
    };
    check(op("projected", without(&["weight"])), Refused("error[missing-input]"));
    check(op("projected", without(&["strides", "pad", "dilations", "groups", "pad_type"])), Silent);
    let attribute = |op: &mut Tree| {
        let mut entry = match op.get(OP_ATTRIBUTES) {
            Node::Bytes(b) => Tree::parse(&b),
            Node::Number(_) => unreachable!(),
        };
        entry.set(1, text("extra"));
        op.0.push((OP_ATTRIBUTES, Node::Bytes(entry.bytes())));
    };
    check(op("hidden", attribute), Refused("error[op-attribute]"));
    check(op("hidden", |op| op.0.push((4, Node::Bytes(Vec::new())))), Refused("control flow is not supported"));
    check(binding("store", "data", |b| b.set(1, text("row"))), Refused("error[write-state-type]"));
    check(binding("hidden", "x", |b| b.set(1, text("cache"))), Refused("error[argument-type]"));
    check(binding("mean", "axes", |b| b.set(1, text("square"))), Refused("error[argument-dtype]"));
    let vector = |b: &mut Tree| {
        b.enter(2, |value| {
            value.enter(2, |ty| {
                ty.enter(1, |t| {
                    let first = t.get(3);
                    t.set(2, Node::Number(1));
                    t.set(3, first);
                });
            });
        });
    };
    check(binding("weight", "scale", vector), Refused("error[constexpr-rank]"));
}

#[test]
fn literals_in_place() {
    // The value of a constant, moved to where its name was.
    let inline = |of: &'static str, output: &'static str, param: &'static str| {
        block(move |b| {
            let mut value = None;
            b.edit(
                OPERATIONS,
                |op| output_name(op) == of,
                |op| {
                    op.edit(OP_ATTRIBUTES, |e| e.text(1) == "val", |e| value = Some(e.get(2)));
                },
            );
            b.edit(
                OPERATIONS,
                |op| output_name(op) == output,
                |op| {
                    op.edit(
                        OP_INPUTS,
                        |e| e.text(1) == param,
                        |e| {
                            e.enter(2, |a| a.set(1, Node::Bytes(Tree(vec![(2, value.unwrap())]).bytes())));
                        },
                    );
                },
            );
        })
    };
    check(inline("square_y", "square", "y"), Warned("inline-literal"));
    check(inline("normed_y", "normed", "y"), Refused("error[inline-blob]"));
    let floats = |value: &mut Tree| {
        value.enter(3, |i| i.enter(1, |t| t.0 = vec![(1, Node::Bytes(vec![0x0a, 4, 0, 0, 0, 0x3e]))]));
    };
    check(constant("scaled_y", floats), Refused("elements of fp16 in field 1, expected field 7"));
    let empty = |value: &mut Tree| value.enter(3, |i| i.enter(1, |t| t.0 = vec![(3, Node::Bytes(Vec::new()))]));
    check(constant("scores_transpose_x", empty), Refused("0 bytes of elements for bool[]"));
}

#[test]
fn versions_and_opsets() {
    check(function(|f| f.set(2, text("CoreML7"))), Refused("has opset \"CoreML7\" and blocks for [\"CoreML8\"]"));
    let both = |f: &mut Tree| {
        f.set(2, text("CoreML7"));
        f.enter(BLOCKS, |entry| entry.set(1, text("CoreML7")));
    };
    check(function(both), Warned("op-newer-than-opset"));
    check(model(|m| m.set(1, Node::Number(8))), Refused("error[op-newer-than-package]"));
    check(model(|m| m.set(1, Node::Number(99))), Refused("error[spec-version]"));
    check(program(|p| p.set(1, Node::Number(0))), Refused("program version 0"));
    let attribute = |p: &mut Tree| {
        let value = Tree(vec![
            (2, Node::Bytes(b"\x0a\x02\x08\x02".to_vec())),
            (3, Node::Bytes(b"\x0a\x05\x22\x03\x0a\x01x".to_vec())),
        ]);
        p.0.push((4, Node::Bytes(Tree(vec![(1, text("madeby")), (2, Node::Bytes(value.bytes()))]).bytes())));
    };
    check(program(attribute), Refused("error[program-attribute]"));
    check(
        model(|m| {
            m.remove(PROGRAM);
            m.set(500, Node::Bytes(Vec::new()));
        }),
        Refused("a neural network, not an ML Program"),
    );
}

#[test]
fn descriptions() {
    let array = |change: fn(&mut Tree)| description(move |d| d.enter(1, |f| f.enter(3, |ty| ty.enter(5, change))));
    check(array(|a| a.set(1, Node::Bytes(vec![1, 3, 1, 1]))), Warned("description-shape"));
    check(array(|a| a.set(2, Node::Number(65568))), Warned("description-dtype"));
    check(array(|a| a.set(2, Node::Number(7))), Refused("array element type 7"));
    check(description(|d| d.enter(10, |f| f.set(1, text("other")))), Warned("description-name"));
    check(description(|d| d.remove(13)), Warned("description-name"));
    check(model(|m| m.remove(DESCRIPTION)), Warned("description-name"));
}

/// Whatever becomes of a package's bytes, opening it ends, and without a panic.
#[test]
fn any_byte_of_any_file() {
    let dir = tempfile::tempdir().unwrap();
    let package = written(dir.path());
    let mut rng = anemone_mil::testing::Rng::new(7);
    for file in [model_file(&package), weight_file(&package), package.join("Manifest.json")] {
        let bytes = fs::read(&file).unwrap();
        for _ in 0..1500 {
            let mut changed = bytes.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(changed.len());
                changed[at] = rng.bits() as u8;
            }
            if rng.below(8) == 0 {
                changed.truncate(rng.below(changed.len()));
            }
            fs::write(&file, changed).unwrap();
            if let Ok((valid, _)) = open(&package) {
                let _ = valid.to_string();
            }
        }
        fs::write(&file, bytes).unwrap();
    }
}
