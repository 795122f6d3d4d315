//! Compressed weights, against values worked out by hand from the definitions.

use anemone_mil::decode::{elements, results};
use anemone_mil::text::parse;
use anemone_mil::{Valid, validate_foreign};

/// A program of one `constexpr` op whose results are its outputs.
fn op(version: i32, opset: &str, line: &str, outputs: &[(&str, &str)]) -> Valid {
    let declared: Vec<String> = outputs.iter().map(|(name, ty)| format!("%{name}: {ty}")).collect();
    let returned: Vec<String> = outputs.iter().map(|(name, _)| format!("%{name}")).collect();
    let text = format!(
        "program {version} default main single {{ func main {opset} () {{ {} = {line} return {} }} }}",
        declared.join(", "),
        returned.join(", ")
    );
    validate_foreign(parse(&text).unwrap()).unwrap().0
}

#[track_caller]
fn check(version: i32, opset: &str, line: &str, outputs: &[(&str, &str)], expected: &[&[f32]]) {
    let valid = op(version, opset, line, outputs);
    let found = results(&valid.call(0, 0)).unwrap();
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.values, *expected, "result {i}");
        assert_eq!(found.ty.to_string(), outputs[i].1);
    }
    assert_eq!(found.len(), expected.len());
}

#[test]
fn blockwise() {
    check(
        9,
        "CoreML8",
        "constexpr_blockwise_shift_scale(data=int4[2, 4](1, -2, 7, -8, 3, 0, 1, 2), scale=fp16[2, 2](0.5, 0.25, 2.0, 1.0), \
         offset=int4[2, 2](1, 0, 0, -1)) {name=\"w\"}",
        &[("w", "fp16[2, 4]")],
        &[&[0.0, -1.5, 1.75, -2.0, 6.0, 0.0, 2.0, 3.0]],
    );
}

#[test]
fn every_step_rounds_to_the_type_of_the_scale() {
    // 127 * 0.1 in fp16: the scale is 0.09997559, the product 12.6969 lies between 12.6953125 and 12.703125.
    let line = |float: &str| {
        format!("constexpr_blockwise_shift_scale(data=int8[1](127), scale={float}[1](0.1)) {{name=\"w\"}}")
    };
    check(9, "CoreML8", &line("fp16"), &[("w", "fp16[1]")], &[&[12.695_312_5]]);
    check(9, "CoreML8", &line("fp32"), &[("w", "fp32[1]")], &[&[12.7]]);
}

#[test]
fn palettes_by_group_and_vector() {
    check(
        9,
        "CoreML8",
        "constexpr_lut_to_dense(indices=uint1[2, 3](0, 1, 1, 1, 0, 0), lut=fp16[2, 1, 2, 1](1.0, 2.0, 3.0, 4.0)) {name=\"w\"}",
        &[("w", "fp16[2, 3]")],
        &[&[1.0, 2.0, 2.0, 4.0, 3.0, 3.0]],
    );
    let line = |axis: i32| {
        format!(
            "constexpr_lut_to_dense(indices=uint1[2, 2](0, 1, 1, 0), lut=fp16[1, 1, 2, 2](1.0, 2.0, 3.0, 4.0), \
             vector_axis=int32[]({axis})) {{name=\"w\"}}"
        )
    };
    check(9, "CoreML8", &line(0), &[("w", "fp16[4, 2]")], &[&[1.0, 3.0, 2.0, 4.0, 3.0, 1.0, 4.0, 2.0]]);
    check(9, "CoreML8", &line(-1), &[("w", "fp16[2, 4]")], &[&[1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 1.0, 2.0]]);
}

#[test]
fn sparse() {
    check(
        9,
        "CoreML8",
        "constexpr_sparse_to_dense(nonzero_data=fp16[3](1.0, 2.0, 3.0), mask=uint1[2, 3](0, 1, 0, 1, 0, 1)) {name=\"w\"}",
        &[("w", "fp16[2, 3]")],
        &[&[0.0, 1.0, 0.0, 2.0, 0.0, 3.0]],
    );
}

#[test]
fn sparse_and_quantised() {
    check(
        9,
        "CoreML8",
        "constexpr_sparse_blockwise_shift_scale(data_mask=uint1[2, 2](1, 0, 1, 1), nonzero_data=int8[3](10, 4, 6), \
         scale=fp16[1, 2](0.5, 0.25), offset=int8[1, 2](2, 4)) {name=\"w\"}",
        &[("m", "uint1[2, 2]"), ("w", "fp16[3]")],
        &[&[1.0, 0.0, 1.0, 1.0], &[4.0, 1.0, 0.5]],
    );
}

#[test]
fn sparse_and_palettised() {
    // A vector of two along the rows: every row of the mask is there twice.
    check(
        9,
        "CoreML8",
        "constexpr_lut_to_sparse(indices_mask=uint1[2, 2](1, 1, 0, 1), indices_nonzero_data=uint1[3](0, 1, 1), \
         lut=fp16[1, 1, 2, 2](1.0, 2.0, 3.0, 4.0), vector_axis=int32[](0)) {name=\"w\"}",
        &[("m", "uint1[4, 2]"), ("w", "fp16[6]")],
        &[&[1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0], &[1.0, 3.0, 2.0, 4.0, 3.0, 4.0]],
    );
}

#[test]
fn attributes_of_ios_16() {
    check(
        7,
        "CoreML6",
        "constexpr_affine_dequantize() {name=\"w\", axis=int32[](1), quantized_data=int8[2, 2](1, 2, 3, 4), \
         scale=fp16[2](0.5, 2.0), zero_point=int8[2](1, 0)}",
        &[("w", "fp16[2, 2]")],
        &[&[0.0, 4.0, 1.0, 8.0]],
    );
    // 0b00_01_10_11 read from the low end: 3, 2, 1, 0.
    check(
        7,
        "CoreML6",
        "constexpr_lut_to_dense() {name=\"w\", indices=uint8[1](27), lut=fp16[4](1.0, 2.0, 3.0, 4.0), shape=uint32[2](2, 2)}",
        &[("w", "fp16[2, 2]")],
        &[&[4.0, 3.0, 2.0, 1.0]],
    );
    check(
        7,
        "CoreML6",
        "constexpr_sparse_to_dense() {name=\"w\", mask=uint8[1](10), nonzero_data=fp16[2](1.5, 2.5), shape=uint32[2](2, 2)}",
        &[("w", "fp16[2, 2]")],
        &[&[0.0, 1.5, 0.0, 2.5]],
    );
    check(
        7,
        "CoreML6",
        "constexpr_cast() {name=\"w\", output_dtype=string[](\"fp32\"), source_val=fp16[2](1.5, -0.25)}",
        &[("w", "fp32[2]")],
        &[&[1.5, -0.25]],
    );
}

#[test]
fn chains_are_followed_and_bounded() {
    let chain = |n: usize| {
        let mut ops =
            "%v0: fp16[2] = constexpr_blockwise_shift_scale(data=int8[2](1, 2), scale=fp16[1](0.5)) {name=\"v0\"}"
                .to_owned();
        for i in 1..=n {
            ops += &format!(
                " %v{i}: fp16[2] = constexpr_blockwise_shift_scale(data=%v{}, scale=fp16[1](2.0)) {{name=\"v{i}\"}}",
                i - 1
            );
        }
        let text = format!("program 9 default main single {{ func main CoreML8 () {{ {ops} return %v{n} }} }}");
        let (valid, _) = validate_foreign(parse(&text).unwrap()).unwrap();
        results(&valid.call(0, n))
    };
    assert_eq!(chain(1).unwrap()[0].values, [1.0, 2.0]);
    assert_eq!(chain(3).unwrap()[0].values, [4.0, 8.0]);
    assert!(chain(5000).unwrap_err().to_string().contains("in a chain"));
}

#[test]
fn a_small_file_cannot_ask_for_more_memory_than_there_is() {
    // A hundred bytes of indices, each standing for a vector of 2^16: decoded, 2^16 * 2^16 elements.
    let (rows, vector) = (1 << 16, 1 << 16);
    let text = format!(
        "program 9 default main single {{ func main CoreML8 () {{
            %w: fp16[{rows}, {vector}] = constexpr_lut_to_dense(indices=uint1[{rows}, 1]hex\"{}\", \
             lut=fp16[1, 1, 2, {vector}]hex\"{}\", vector_axis=int32[](1)) {{name=\"w\"}} return %w }} }}",
        "00".repeat(rows / 8),
        "0000".repeat(2 * vector)
    );
    let (valid, _) = validate_foreign(parse(&text).unwrap()).unwrap();
    assert!(results(&valid.call(0, 0)).unwrap_err().to_string().contains("at most"));
}

/// What reads some elements of a weight alone agrees with what decodes all of it, at every place and across scales.
#[test]
fn some_elements_are_those_of_the_whole() {
    let list = |n: usize, f: &dyn Fn(usize) -> String| (0..n).map(f).collect::<Vec<_>>().join(", ");
    let int8 = |i: usize| ((i * 89 + 131) as u8 as i8).to_string();
    let scales = ["0.1", "65504.0", "0.00001", "0.0", "-0.3", "0.00000006", "1.5"];
    let data = format!("int8[7, 3, 1](127, -128, 0, {})", list(18, &int8));
    let scaled = |scale: &str| format!("constexpr_blockwise_shift_scale(data={data}, scale={scale}) {{name=\"w\"}}");
    let per_slice = scaled(&format!("fp16[7, 1, 1]({})", scales.join(", ")));
    let whole = scaled("fp16[1, 1, 1](0.0123)");
    let halves = format!("const() {{val=fp16[7, 3, 1]({}), name=\"w\"}}", list(21, &|i| format!("{}.3", i * 7)));
    for line in [per_slice, whole, halves] {
        let valid = op(9, "CoreML8", &line, &[("w", "fp16[7, 3, 1]")]);
        let call = valid.call(0, 0);
        let all = results(&call).unwrap().remove(0).values;
        for start in 0..=21 {
            for end in start..=21 {
                let mut some = vec![f32::NAN; end - start];
                assert!(elements(&call, start, &mut some), "{line}");
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&some), bits(&all[start..end]), "{start}..{end} of {line}");
            }
        }
        assert!(!elements(&call, 20, &mut [0.0; 2]) && !elements(&call, usize::MAX, &mut [0.0; 2]), "beyond the end");
    }
    let columns = scaled("fp16[1, 3, 1](0.1, 0.2, 0.3)");
    let valid = op(9, "CoreML8", &columns, &[("w", "fp16[7, 3, 1]")]);
    assert!(!elements(&valid.call(0, 0), 0, &mut [0.0; 1]), "a scale for each column is not what is read so");
}
