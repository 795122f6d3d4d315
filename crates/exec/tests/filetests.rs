//! The validator's file tests that also say what comes out.
//!
//! `; run: x[2, 3](1, 2, 3, 4, 5, 6) -> y[2, 3](...)` calls the program's default function, `; run NAME: ...` the one of that name,
//! once a line, in order and with one state. A single number stands for all elements. The numbers are such that fp16 holds
//! each result and each step to it, so both numerics must give them exactly.

use std::path::{Path, PathBuf};

use anemone_exec::{Data, Dtype, Model, Numerics, Options, Portable, Tensor};
use anemone_mil::text::parse;
use anemone_mil::validate;

/// One array of a line.
#[derive(Debug)]
struct Array {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// One line: the function where it is named, what goes in and what must come out.
#[derive(Debug)]
struct Call {
    function: Option<String>,
    inputs: Vec<Array>,
    outputs: Vec<Array>,
}

fn calls(text: &str) -> Result<Vec<Call>, String> {
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix("; run"));
    lines.map(|line| call(line).ok_or_else(|| format!("cannot be read: ; run{line}"))).collect()
}

fn call(line: &str) -> Option<Call> {
    let (function, rest) = line.split_once(':')?;
    let function = (!function.trim().is_empty()).then(|| function.trim().to_owned());
    let (inputs, outputs) = rest.split_once("->")?;
    Some(Call { function, inputs: arrays(inputs)?, outputs: arrays(outputs)? })
}

fn arrays(mut text: &str) -> Option<Vec<Array>> {
    let mut found = Vec::new();
    while !text.trim().is_empty() {
        let (name, rest) = text.trim().split_once('[')?;
        let (shape, rest) = rest.split_once(']')?;
        let (values, rest) = rest.strip_prefix('(')?.split_once(')')?;
        let shape: Vec<usize> = shape.split(',').map(|d| d.trim().parse().ok()).collect::<Option<_>>()?;
        let mut values: Vec<f32> = values.split(',').map(|v| v.trim().parse().ok()).collect::<Option<_>>()?;
        let elements = shape.iter().product();
        if values.len() == 1 {
            values = vec![values[0]; elements];
        }
        if values.len() != elements {
            return None;
        }
        found.push(Array { name: name.trim().to_owned(), shape, values });
        text = rest;
    }
    Some(found)
}

/// How many calls a file has, all as stated.
fn check(path: &Path, numerics: Numerics) -> Result<usize, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let calls = calls(&text)?;
    if calls.is_empty() {
        return Ok(0);
    }
    let valid = validate(parse(&text).map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    let runtime = Portable::new(numerics, Options { threads: 2, ..Options::default() });
    let model = runtime.prepare(&valid).map_err(|e| e.to_string())?;
    let mut state = model.new_state().map_err(|e| e.to_string())?;
    for (n, call) in calls.iter().enumerate() {
        let function = match &call.function {
            Some(name) => {
                model.functions().iter().position(|f| f.name == *name).ok_or(format!("no function {name}"))?
            }
            None => model.default_function(),
        };
        let signature = &model.functions()[function];
        let mut inputs = Vec::new();
        for port in &signature.inputs {
            let array =
                call.inputs.iter().find(|a| a.name == port.name).ok_or(format!("call {n}: no {}", port.name))?;
            inputs.push(match port.dtype {
                Dtype::I32 => Tensor::new(&array.shape, Data::I32(array.values.iter().map(|&v| v as i32).collect())),
                Dtype::F32 => Tensor::new(&array.shape, Data::F32(array.values.clone())),
                _ => Tensor::from_f32(&array.shape, array.values.clone(), model.float()),
            });
        }
        let outputs = model.run(function, &inputs.iter().collect::<Vec<_>>(), &mut state).map_err(|e| e.to_string())?;
        for expected in &call.outputs {
            let found = signature.output(&expected.name).map(|i| &outputs[i]);
            let found = found.ok_or(format!("call {n}: no output {}", expected.name))?;
            if found.shape() != expected.shape || found.to_f32() != expected.values {
                let (shape, values) = (found.shape(), found.to_f32());
                return Err(format!("call {n}: {expected:?}, found {shape:?} {values:?}"));
            }
        }
    }
    Ok(calls.len())
}

#[test]
fn files_compute_what_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mil/tests/filetests");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    for numerics in [Numerics::Exact, Numerics::Ane] {
        let mut ran = 0;
        let mut failures = Vec::new();
        for file in &files {
            match check(file, numerics) {
                Ok(n) => ran += n,
                Err(e) => failures.push(format!("{}: {e}", file.display())),
            }
        }
        assert!(failures.is_empty(), "{numerics:?}\n{}", failures.join("\n"));
        assert!(ran >= 20, "the files are where they should be: {ran} calls");
    }
}
