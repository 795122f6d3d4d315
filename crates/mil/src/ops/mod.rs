//! The op table: what every op is called, which opset brought it, what it takes, what it yields, how exact it must be.
//!
//! One row says everything that validator, text parser, builder, executor and documentation need to agree on. A row's type
//! rule is one function from a [`Call`] to the types of its results; it is the single place where shapes are computed, and
//! it never trusts a number: dimensions come from hostile files.
//!
//! Adding an op is adding a row to the family it belongs to. The names, parameters and defaults are those of the MIL
//! reference of coremltools 9.0; where a rule has a trap, the row says so.

mod call;
pub mod shape;

mod constants;
mod elementwise;
mod index;
mod layout;
mod linear;
mod normalize;
mod reduce;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

pub use call::{Call, Scope, TypeError};

use crate::ir::{Arg, Dtype, TensorType, ValueType};

/// The set of ops a function may use. Each Core ML release has one; ops are only ever added or given a new definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Opset {
    /// iOS 15, specification version 6.
    CoreMl5,
    /// iOS 16, specification version 7: fp16 inputs and outputs, compressed weights.
    CoreMl6,
    /// iOS 17, specification version 8: 8- and 16-bit integers, activation quantisation.
    CoreMl7,
    /// iOS 18, specification version 9: states, several functions, sub-byte weights.
    CoreMl8,
    /// iOS 26, specification version 10: the same ops.
    CoreMl9,
}

impl Opset {
    const ALL: [Opset; 5] = [Opset::CoreMl5, Opset::CoreMl6, Opset::CoreMl7, Opset::CoreMl8, Opset::CoreMl9];

    /// The name a function carries.
    pub fn name(self) -> &'static str {
        match self {
            Opset::CoreMl5 => "CoreML5",
            Opset::CoreMl6 => "CoreML6",
            Opset::CoreMl7 => "CoreML7",
            Opset::CoreMl8 => "CoreML8",
            Opset::CoreMl9 => "CoreML9",
        }
    }

    /// The opset of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.name() == name)
    }

    /// The specification version that introduced it.
    pub fn spec_version(self) -> i32 {
        match self {
            Opset::CoreMl5 => 6,
            Opset::CoreMl6 => 7,
            Opset::CoreMl7 => 8,
            Opset::CoreMl8 => 9,
            Opset::CoreMl9 => 10,
        }
    }

    /// The newest opset that a specification version has.
    pub fn from_spec_version(version: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.spec_version() == version)
    }
}

impl fmt::Display for Opset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One row of the op table.
pub struct OpSpec {
    /// The op's type string.
    pub name: &'static str,
    /// The first opset with this definition. An op whose definition changed has several rows.
    pub opset: Opset,
    /// Where its parameters are written.
    pub place: Place,
    /// Its parameters.
    pub params: &'static [Param],
    /// How many values it defines.
    pub outputs: Outputs,
    /// The type rule: the types of the results from the arguments.
    pub infer: fn(&Call<'_>) -> Result<Vec<TensorType>, TypeError>,
    /// How far a result may be from the exact one.
    pub tolerance: Tolerance,
    /// What is known about its placement on the Neural Engine; empty where nothing is.
    pub placement: &'static str,
    /// What it computes.
    pub doc: &'static str,
}

impl OpSpec {
    /// The parameter of that name.
    pub fn param(&self, name: &str) -> Option<&'static Param> {
        self.params.iter().find(|p| p.name == name)
    }

    /// Whether its results are known when the program is compiled: `const` and the `constexpr` family.
    pub fn is_constant(&self) -> bool {
        self.name == "const" || self.name.starts_with("constexpr_")
    }
}

/// Where an op's parameters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// As inputs: everything but the next.
    Inputs,
    /// As attributes: `const`, and the `constexpr` ops of iOS 16.
    Attributes,
}

/// How many values an op defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// Always as many.
    Fixed(usize),
    /// As many as its parameters say (`split`, `topk`).
    Varying,
}

/// How far a runtime's result may be from the exact one, per element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// No arithmetic, or arithmetic that is exact: equal bits.
    Exact,
    /// One rounding per element: within one unit in the last place of the result's type.
    Rounding,
    /// A sum of products or of many terms, accumulated in at least fp32: one rounding of the result and the accumulator's
    /// error, which grows with the number of terms and with the sum of their magnitudes.
    Accumulating,
    /// Exponentials, roots and what is made of them: within four units in the last place of the result's type.
    Transcendental,
}

impl Tolerance {
    /// The largest allowed difference for an exact result `value` of type `dtype`, that was accumulated from `terms` terms
    /// whose magnitudes sum to `magnitude` (both ignored where nothing is accumulated).
    ///
    /// A unit in the last place of `value` is taken as `2^-p |value|`, with p = 10 for fp16 and 23 for fp32, and at least the
    /// smallest subnormal. The accumulator's bound is the textbook `n u Σ|x|` with fp32's u = 2^-24.
    pub fn allowed(self, dtype: Dtype, value: f32, terms: usize, magnitude: f32) -> f32 {
        let ulp = match dtype {
            Dtype::F16 => (value.abs() * 2f32.powi(-10)).max(2f32.powi(-24)),
            Dtype::F32 => (value.abs() * 2f32.powi(-23)).max(f32::MIN_POSITIVE),
            _ => 0.0,
        };
        match self {
            Tolerance::Exact => 0.0,
            Tolerance::Rounding => ulp,
            Tolerance::Accumulating => ulp + terms as f32 * 2f32.powi(-24) * magnitude,
            Tolerance::Transcendental => 4.0 * ulp,
        }
    }
}

/// One parameter of an op.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Whether every use must bind it.
    pub required: bool,
    /// What an unbound one means; `None` where absence has a meaning of its own (`axes` of a reduction: all of them).
    pub default: Option<Default>,
    /// Whether its value must be known when the program is compiled.
    pub constant: bool,
    /// Whether it takes several values (`values` of `concat`).
    pub variadic: bool,
    /// Whether it takes a state.
    pub state: bool,
    /// The element types it accepts.
    pub dtypes: &'static [Dtype],
    /// The first opset whose definition of the op has it.
    pub since: Opset,
}

/// The value of an unbound parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// A bool.
    Bool(bool),
    /// An int32.
    Int(i32),
    /// A float, in the element type of the op's first argument.
    Float(f32),
    /// A float, in fp32 whatever the arguments are.
    F32(f32),
    /// A string.
    Str(&'static str),
    /// Int32 ones, one for each spatial dimension of `x` (those after batch and channel).
    SpatialOnes,
    /// Int32 zeros, two for each spatial dimension of `x`.
    SpatialZeros,
    /// Zeros in the element type of `weight`, one for each of its rows.
    ZeroBias,
    /// Int32 ones, one for each dimension of `x`. Never written out.
    RankOnes,
    /// False, for each dimension of `x`. Never written out.
    RankFalse,
}

impl Default {
    /// Whether a package spells this default out. Core ML's own tools write every default that does not merely say "no
    /// mask" or "stride one" for each dimension of a slice; whether the compiler accepts the others left out is not known.
    pub fn written(self) -> bool {
        !matches!(self, Default::RankOnes | Default::RankFalse)
    }
}

impl Param {
    /// A required parameter.
    pub const fn required(name: &'static str, dtypes: &'static [Dtype]) -> Self {
        Self {
            name,
            required: true,
            default: None,
            constant: false,
            variadic: false,
            state: false,
            dtypes,
            since: Opset::CoreMl5,
        }
    }

    /// An optional parameter whose absence has a meaning of its own.
    pub const fn optional(name: &'static str, dtypes: &'static [Dtype]) -> Self {
        Self { required: false, ..Self::required(name, dtypes) }
    }

    /// An optional constant with a default.
    pub const fn defaulted(name: &'static str, dtypes: &'static [Dtype], default: Default) -> Self {
        Self { default: Some(default), ..Self::optional(name, dtypes) }.constant()
    }

    /// Marks it as known at compile time.
    pub const fn constant(self) -> Self {
        Self { constant: true, ..self }
    }

    /// Marks it as taking several values.
    pub const fn variadic(self) -> Self {
        Self { variadic: true, ..self }
    }

    /// Marks it as taking a state.
    pub const fn state(self) -> Self {
        Self { state: true, ..self }
    }

    /// Gives the opset that added it.
    pub const fn since(self, opset: Opset) -> Self {
        Self { since: opset, ..self }
    }
}

/// Sets of element types that many rows share.
pub(crate) mod dtypes {
    use crate::ir::Dtype::{self, *};

    pub const ANY: &[Dtype] = &[
        Bool, String, F16, F32, F64, BF16, I4, I8, I16, I32, I64, U1, U2, U3, U4, U6, U8, U16, U32, U64, F8E4M3, F8E5M2,
    ];
    pub const FLOAT: &[Dtype] = &[F16, F32];
    /// What arithmetic takes.
    pub const NUMBER: &[Dtype] = &[F16, F32, I32];
    /// What moves without being computed with.
    pub const MOVABLE: &[Dtype] = &[Bool, F16, F32, I8, U8, I16, U16, I32];
    pub const CORE: &[Dtype] = &[Bool, F16, F32, I32];
    pub const INDEX: &[Dtype] = &[I8, U8, I16, U16, I32];
    pub const SHAPE: &[Dtype] = &[I8, I16, I32];
    pub const I32S: &[Dtype] = &[I32];
    pub const U32S: &[Dtype] = &[U32];
    pub const BOOLS: &[Dtype] = &[Bool];
    pub const STR: &[Dtype] = &[String];
    pub const F16S: &[Dtype] = &[F16];
    pub const BYTE: &[Dtype] = &[I8, U8];
    pub const U8S: &[Dtype] = &[U8];
    pub const U1S: &[Dtype] = &[U1];
    /// Palette indices.
    pub const PALETTE: &[Dtype] = &[U1, U2, U3, U4, U6, U8];
    pub const LUT: &[Dtype] = &[F16, F32, I8, U8];
    pub const QUANTIZED: &[Dtype] = &[I4, U4, I8, U8, F16, F32];
}

static FAMILIES: [&[OpSpec]; 8] =
    [constants::OPS, state::OPS, elementwise::OPS, linear::OPS, normalize::OPS, reduce::OPS, layout::OPS, index::OPS];

static BY_NAME: LazyLock<BTreeMap<&'static str, Vec<&'static OpSpec>>> = LazyLock::new(|| {
    let mut map: BTreeMap<&str, Vec<&OpSpec>> = BTreeMap::new();
    for op in all() {
        map.entry(op.name).or_default().push(op);
    }
    for rows in map.values_mut() {
        rows.sort_by_key(|op| op.opset);
    }
    map
});

/// Every row, family by family.
pub fn all() -> impl Iterator<Item = &'static OpSpec> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

/// The newest definition of an op.
pub fn spec(kind: &str) -> Option<&'static OpSpec> {
    BY_NAME.get(kind)?.last().copied()
}

/// The definition of an op that an opset has: the newest that is not newer.
pub fn spec_in(kind: &str, opset: Opset) -> Option<&'static OpSpec> {
    BY_NAME.get(kind)?.iter().rev().find(|op| op.opset <= opset).copied()
}

/// Checks what every op's arguments have in common: how many, states where states belong, element types, constness.
///
/// The type rules rely on it: behind it, an argument is a tensor of a type that the row names.
pub fn check_arguments(call: &Call<'_>) -> Result<(), TypeError> {
    let fail = |rule, message| Err(TypeError::new(rule, message));
    for (name, args) in &call.op().inputs {
        let Some(param) = call.spec().param(name) else {
            return fail("unknown-input", format!("`{}` has no parameter `{name}`", call.spec().name));
        };
        if args.is_empty() || (args.len() > 1 && !param.variadic) {
            return fail("argument-count", format!("`{name}` has {} arguments", args.len()));
        }
        for arg in args {
            let ty = match arg {
                Arg::Value(id) => call.scope().values.get(id.index()).map(|v| &v.ty),
                Arg::Literal(lit) => Some(&lit.ty),
            };
            let tensor = match ty {
                Some(ValueType::State(t)) if param.state => t,
                Some(ValueType::Tensor(t)) if !param.state => t,
                Some(other) => {
                    let expected = if param.state { "a state" } else { "a tensor" };
                    return fail("argument-type", format!("`{name}` is {other}, expected {expected}"));
                }
                None => return fail("undefined-value", format!("`{name}` is bound to a value that does not exist")),
            };
            check_dtype(call, param, tensor)?;
        }
        if param.constant && call.is_runtime(name) {
            return fail("not-constant", format!("`{name}` must be known when the program is compiled"));
        }
    }
    if call.spec().place == Place::Attributes {
        for param in call.spec().params {
            if let Some(ty) = call.op().attributes.get(param.name).and_then(|lit| lit.tensor_type()) {
                check_dtype(call, param, ty)?;
            }
        }
    }
    Ok(())
}

/// 8- and 16-bit integers arrived with iOS 17, except in weights and, 16-bit, as indices.
fn check_dtype(call: &Call<'_>, param: &Param, ty: &TensorType) -> Result<(), TypeError> {
    if !param.dtypes.contains(&ty.dtype) {
        let names: Vec<&str> = param.dtypes.iter().map(|d| d.name()).collect();
        return Err(TypeError::new(
            "argument-dtype",
            format!("`{}` is {ty}, expected one of {}", param.name, names.join(", ")),
        ));
    }
    let since = match ty.dtype {
        Dtype::I16 | Dtype::U16 if param.name == "indices" => Opset::CoreMl6,
        Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::U16 => Opset::CoreMl7,
        _ => Opset::CoreMl5,
    };
    if !call.spec().is_constant() && call.opset() < since {
        return Err(TypeError::new(
            "argument-dtype",
            format!("`{}` is {ty}, which {} does not compute with", param.name, call.opset()),
        ));
    }
    Ok(())
}
