//! From the model's protobuf to the IR.
//!
//! Names become ids here: a binding means the latest definition before it. Whatever the IR has no room for (blocks inside of
//! ops, attributes of types and blocks, doc strings) is an error, as it is to coremltools' loader.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ReadError;
use super::blob::Weights;
use super::schema::{self, *};
use super::wire::{Field, Message};
use crate::diag::Diagnostic;
use crate::ir::{
    About, Arg, Dim, Dtype, Feature, Flexibility, Function, Interface, Literal, Op, Payload, Program, TensorType,
    Value, ValueId, ValueType,
};
use crate::ops::shape::{MAX_DIM, MAX_RANK};

/// How deep lists, tuples and dictionaries may nest.
const MAX_DEPTH: usize = 16;

/// How many ops, values, arguments, literals and features a file may turn into: an order of magnitude above any real model,
/// and at a few hundred bytes each, what bounds the memory of reading one.
const MAX_NODES: usize = 1 << 22;

type Result<T> = std::result::Result<T, ReadError>;

/// Reads a model. Findings that do not prevent it go to `notes`.
pub fn model(bytes: &[u8], weights: &mut Weights, notes: &mut Vec<Diagnostic>) -> Result<Program> {
    let mut decoder = Decoder { weights, notes, nodes: 0 };
    let program = decoder.model(Message::new(bytes))?;
    decoder.weights.check_counts(decoder.notes);
    Ok(program)
}

struct Decoder<'w> {
    weights: &'w mut Weights,
    notes: &'w mut Vec<Diagnostic>,
    nodes: usize,
}

#[derive(Default)]
struct Description {
    interface: Interface,
    functions: BTreeMap<String, Interface>,
    default_function: String,
    about: About,
    metadata: BTreeMap<String, String>,
}

/// Key and value of a map's entry.
fn entry<'a>(message: Message<'a>) -> Result<(&'a str, Option<Field<'a>>)> {
    let (mut key, mut value) = ("", None);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => key = field.string()?,
            2 => value = Some(field),
            _ => {}
        }
    }
    Ok((key, value))
}

impl Decoder<'_> {
    fn spend(&mut self, message: &Message<'_>) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(message.error(format!("more than {MAX_NODES} ops, values and arguments")));
        }
        Ok(())
    }

    fn note(&mut self, rule: &'static str, message: String) {
        self.notes.push(Diagnostic::warning(rule, message));
    }

    fn model(&mut self, message: Message<'_>) -> Result<Program> {
        let (mut version, mut description, mut program, mut other) = (0, None, None, None);
        for field in message.fields() {
            let field = field?;
            match field.number {
                model::VERSION => version = field.i64()?,
                model::DESCRIPTION => description = Some(field.message()?),
                model::PROGRAM => program = Some(field.message()?),
                200.. => other = Some(field.number),
                _ => {}
            }
        }
        let Some(program) = program else {
            let what = match other {
                Some(202) => "a pipeline",
                Some(500) => "a neural network",
                Some(3000) => "a serialized model",
                _ => "something else",
            };
            return Err(message.error(format!("the model is {what}, not an ML Program")));
        };
        let spec_version =
            i32::try_from(version).map_err(|_| message.error(format!("specification version {version}")))?;
        let mut description = match description {
            Some(m) => self.description(m)?,
            None => Description::default(),
        };
        let multifunction = !description.functions.is_empty() || !description.default_function.is_empty();
        let (mut functions, attributes) = self.program(program)?;
        for f in &mut functions {
            if !multifunction {
                f.interface = description.interface.clone();
            } else if let Some(interface) = description.functions.remove(&f.name) {
                f.interface = interface;
            } else {
                self.note("description-function", format!("function `{}` is missing in the description", f.name));
            }
        }
        if multifunction {
            for name in description.functions.keys() {
                self.notes.push(Diagnostic::warning(
                    "description-function",
                    format!("function `{name}` of the description is none of the program's"),
                ));
            }
        }
        let default_function = match (multifunction, functions.as_slice()) {
            (true, _) => description.default_function,
            (false, [only]) => only.name.clone(),
            (false, _) => "main".to_owned(),
        };
        Ok(Program {
            spec_version,
            functions,
            default_function,
            multifunction,
            metadata: description.metadata,
            about: description.about,
            attributes,
        })
    }

    fn description(&mut self, message: Message<'_>) -> Result<Description> {
        let mut d = Description::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                description::INPUT => self.feature(field.message()?, &mut d.interface.inputs)?,
                description::OUTPUT => self.feature(field.message()?, &mut d.interface.outputs)?,
                description::STATE => self.feature(field.message()?, &mut d.interface.states)?,
                description::FUNCTIONS => {
                    let message = field.message()?;
                    let (name, interface) = self.function_description(message)?;
                    if d.functions.insert(name.clone(), interface).is_some() {
                        return Err(message.error(format!("function {name:?} is described twice")));
                    }
                }
                description::DEFAULT_FUNCTION => d.default_function = field.string()?.to_owned(),
                description::METADATA => {
                    for field in field.message()?.fields() {
                        let field = field?;
                        match field.number {
                            metadata::SHORT_DESCRIPTION => d.about.short_description = field.string()?.to_owned(),
                            metadata::VERSION => d.about.version = field.string()?.to_owned(),
                            metadata::AUTHOR => d.about.author = field.string()?.to_owned(),
                            metadata::LICENSE => d.about.license = field.string()?.to_owned(),
                            metadata::USER_DEFINED => {
                                let message = field.message()?;
                                self.spend(&message)?;
                                let (key, value) = entry(message)?;
                                let value = value.map_or(Ok(""), |f| f.string())?;
                                d.metadata.insert(key.to_owned(), value.to_owned());
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(d)
    }

    fn function_description(&mut self, message: Message<'_>) -> Result<(String, Interface)> {
        self.spend(&message)?;
        let (mut name, mut interface) = (String::new(), Interface::default());
        for field in message.fields() {
            let field = field?;
            match field.number {
                function_description::NAME => name = field.string()?.to_owned(),
                function_description::INPUT => self.feature(field.message()?, &mut interface.inputs)?,
                function_description::OUTPUT => self.feature(field.message()?, &mut interface.outputs)?,
                function_description::STATE => self.feature(field.message()?, &mut interface.states)?,
                _ => {}
            }
        }
        Ok((name, interface))
    }

    /// A feature, unless it is of a kind that is no array: the function's own type stands for it then.
    fn feature(&mut self, message: Message<'_>, into: &mut Vec<Feature>) -> Result<()> {
        self.spend(&message)?;
        let (mut name, mut ty) = ("", None);
        for field in message.fields() {
            let field = field?;
            match field.number {
                feature::NAME => name = field.string()?,
                feature::TYPE => ty = Some(field.message()?),
                _ => {}
            }
        }
        let Some(ty) = ty else { return Err(message.error(format!("feature {name:?} has no type"))) };
        let (mut array, mut optional, mut kind) = (None, false, 0);
        for field in ty.fields() {
            let field = field?;
            match field.number {
                feature_type::MULTI_ARRAY => array = Some(field.message()?),
                feature_type::STATE => {
                    for field in field.message()?.fields() {
                        let field = field?;
                        if field.number == state_feature::ARRAY {
                            array = Some(field.message()?);
                        }
                    }
                }
                feature_type::OPTIONAL => optional = field.bool()?,
                other => kind = other,
            }
        }
        match array {
            Some(array) => into.push(self.array(name, array, optional)?),
            None => {
                let what = match kind {
                    1 => "an int64",
                    2 => "a double",
                    3 => "a string",
                    4 => "an image",
                    6 => "a dictionary",
                    7 => "a sequence",
                    _ => "of no known type",
                };
                self.note("feature-type", format!("feature `{name}` is {what}, not an array"));
            }
        }
        Ok(())
    }

    fn array(&mut self, name: &str, message: Message<'_>, optional: bool) -> Result<Feature> {
        let (mut shape, mut dtype, mut flexibility, mut default) = (Vec::new(), 0, Flexibility::Fixed, None);
        for field in message.fields() {
            let field = field?;
            match field.number {
                array::SHAPE => dims(field, message, &mut shape)?,
                array::DATA_TYPE => dtype = field.u64()?,
                array::ENUMERATED => {
                    let mut shapes = Vec::new();
                    for field in field.message()?.fields() {
                        let inner = field?.message()?;
                        self.spend(&inner)?;
                        let mut one = Vec::new();
                        for field in inner.fields() {
                            dims(field?, inner, &mut one)?;
                        }
                        shapes.push(one);
                    }
                    flexibility = Flexibility::Enumerated(shapes);
                }
                array::RANGE => {
                    let mut bounds = Vec::new();
                    for field in field.message()?.fields() {
                        let inner = field?.message()?;
                        if bounds.len() == MAX_RANK {
                            return Err(inner.error(format!("more than {MAX_RANK} dimensions")));
                        }
                        let (mut low, mut high) = (0, 0);
                        for field in inner.fields() {
                            let field = field?;
                            match field.number {
                                1 => low = size(field.i64()?, inner)?,
                                2 => high = field.i64()?,
                                _ => {}
                            }
                        }
                        bounds.push((low, if high < 0 { None } else { Some(size(high, inner)?) }));
                    }
                    flexibility = Flexibility::Range(bounds);
                }
                array::INT_DEFAULT => default = Some(field.i64()? as f64),
                array::FLOAT_DEFAULT => default = Some(f64::from(field.f32()?)),
                array::DOUBLE_DEFAULT => default = Some(field.f64()?),
                _ => {}
            }
        }
        let dtype = schema::array_dtype(dtype).ok_or_else(|| {
            message.error(format!("feature {name:?} has array element type {dtype}, which does not exist"))
        })?;
        let shape = (!shape.is_empty()).then_some(shape);
        Ok(Feature { name: name.to_owned(), dtype, shape, flexibility, optional, default })
    }

    fn program(&mut self, message: Message<'_>) -> Result<(Vec<Function>, BTreeMap<String, Literal>)> {
        let (mut version, mut functions, mut attributes) = (0, BTreeMap::new(), BTreeMap::new());
        for field in message.fields() {
            let field = field?;
            match field.number {
                program::VERSION => version = field.i64()?,
                program::FUNCTIONS => {
                    let message = field.message()?;
                    self.spend(&message)?;
                    let (name, value) = entry(message)?;
                    let body = value.ok_or_else(|| message.error(format!("function {name:?} is empty")))?.message()?;
                    let function = self.function(name, body)?;
                    if functions.insert(name.to_owned(), function).is_some() {
                        return Err(message.error(format!("function {name:?} is defined twice")));
                    }
                }
                program::DOC if !field.bytes()?.is_empty() => {
                    return Err(message.error("a program's doc string would be lost"));
                }
                program::ATTRIBUTES => {
                    let (name, literal) = self.attribute(field.message()?)?;
                    attributes.insert(name, literal);
                }
                _ => {}
            }
        }
        if version != 1 {
            return Err(message.error(format!("program version {version}, expected 1")));
        }
        Ok((functions.into_values().collect(), attributes))
    }

    fn attribute(&mut self, message: Message<'_>) -> Result<(String, Literal)> {
        let (name, value) = entry(message)?;
        let value = value.ok_or_else(|| message.error(format!("attribute {name:?} has no value")))?.message()?;
        Ok((name.to_owned(), self.literal(value, 0)?))
    }

    fn function(&mut self, name: &str, message: Message<'_>) -> Result<Function> {
        let (mut inputs, mut opset, mut blocks) = (Vec::new(), "", BTreeMap::new());
        for field in message.fields() {
            let field = field?;
            match field.number {
                function::INPUTS => inputs.push(self.named_type(field.message()?)?),
                function::OPSET => opset = field.string()?,
                function::BLOCKS => {
                    let message = field.message()?;
                    let (key, value) = entry(message)?;
                    let value = value.ok_or_else(|| message.error(format!("block {key:?} is empty")))?;
                    blocks.insert(key, value.message()?);
                }
                function::ATTRIBUTES => return Err(message.error(format!("function {name:?} has attributes"))),
                _ => {}
            }
        }
        let Some(body) = blocks.remove(opset) else {
            let keys: Vec<&str> = blocks.into_keys().collect();
            return Err(message.error(format!("function {name:?} has opset {opset:?} and blocks for {keys:?}")));
        };
        for other in blocks.keys() {
            self.note(
                "block-specialization",
                format!("function `{name}` has another block for {other:?}, which is left out"),
            );
        }
        let mut body =
            Body { function: name, values: Vec::new(), names: HashMap::new(), ops: Vec::new(), message: body };
        let ids = inputs.into_iter().map(|v| body.define(v)).collect();
        let outputs = self.block(&mut body)?;
        Ok(Function {
            name: name.to_owned(),
            opset: opset.to_owned(),
            values: body.values,
            inputs: ids,
            ops: body.ops,
            outputs,
            interface: Interface::default(),
        })
    }

    fn block(&mut self, body: &mut Body<'_>) -> Result<Vec<ValueId>> {
        let message = body.message;
        let mut outputs = Vec::new();
        for field in message.fields() {
            let field = field?;
            match field.number {
                block::INPUTS => return Err(message.error("a function's block has inputs of its own")),
                block::OUTPUTS => {
                    self.spend(&message)?;
                    outputs.push(field.string()?);
                }
                block::OPERATIONS => self.operation(body, field.message()?)?,
                block::ATTRIBUTES => return Err(message.error("a block has attributes")),
                _ => {}
            }
        }
        outputs
            .into_iter()
            .map(|name| {
                body.names.get(name).copied().ok_or_else(|| ReadError::Program {
                    function: body.function.to_owned(),
                    op: None,
                    message: format!("output `{name}` is not defined"),
                })
            })
            .collect()
    }

    fn operation<'a>(&mut self, body: &mut Body<'a>, message: Message<'a>) -> Result<()> {
        self.spend(&message)?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        let mut op = Op {
            kind: String::new(),
            name: String::new(),
            inputs: BTreeMap::new(),
            outputs: Vec::new(),
            attributes: BTreeMap::new(),
        };
        for field in message.fields() {
            let field = field?;
            match field.number {
                operation::TYPE => op.kind = field.string()?.to_owned(),
                operation::INPUTS => inputs.push(field.message()?),
                operation::OUTPUTS => outputs.push(self.named_type(field.message()?)?),
                operation::BLOCKS => {
                    let at = body.at(Some(&op.kind));
                    return Err(at.error("the op has blocks of its own; control flow is not supported"));
                }
                operation::ATTRIBUTES => {
                    let (key, literal) = self.attribute(field.message()?)?;
                    match (key.as_str(), literal.to_str()) {
                        ("name", Some(name)) => op.name = name.to_owned(),
                        ("name", None) => return Err(body.at(Some(&op.kind)).error("attribute `name` is no string")),
                        _ => {
                            op.attributes.insert(key, literal);
                        }
                    }
                }
                _ => {}
            }
        }
        for message in inputs {
            let (param, value) = entry(message)?;
            let mut args = Vec::new();
            if let Some(value) = value {
                for field in value.message()?.fields() {
                    let field = field?;
                    if field.number == argument::ARGUMENTS {
                        args.push(self.binding(body, &op, param, field.message()?)?);
                    }
                }
            }
            self.spend(&message)?;
            op.inputs.insert(param.to_owned(), args);
        }
        for value in outputs {
            let id = body.define(value);
            op.outputs.push(id);
        }
        body.ops.push(op);
        Ok(())
    }

    fn binding(&mut self, body: &Body<'_>, op: &Op, param: &str, message: Message<'_>) -> Result<Arg> {
        self.spend(&message)?;
        let mut arg = None;
        for field in message.fields() {
            let field = field?;
            match field.number {
                binding::NAME => {
                    let name = field.string()?;
                    let id = body.names.get(name).ok_or_else(|| {
                        let why = match body.defined_later(name) {
                            true => "is only defined by a later op: ops are not in order",
                            false => "is not defined",
                        };
                        body.at(Some(&op.kind)).error(format!("`{param}` is bound to `{name}`, which {why}"))
                    })?;
                    arg = Some(Arg::Value(*id));
                }
                binding::VALUE => arg = Some(Arg::Literal(self.literal(field.message()?, 0)?)),
                _ => {}
            }
        }
        arg.ok_or_else(|| body.at(Some(&op.kind)).error(format!("`{param}` is bound to nothing")))
    }

    fn named_type(&mut self, message: Message<'_>) -> Result<Value> {
        self.spend(&message)?;
        let (mut name, mut ty) = ("", None);
        for field in message.fields() {
            let field = field?;
            match field.number {
                named_type::NAME => name = field.string()?,
                named_type::TYPE => ty = Some(self.value_type(field.message()?, 0)?),
                _ => {}
            }
        }
        let ty = ty.ok_or_else(|| message.error(format!("value {name:?} has no type")))?;
        Ok(Value { name: name.to_owned(), ty })
    }

    fn value_type(&mut self, message: Message<'_>, depth: usize) -> Result<ValueType> {
        if depth > MAX_DEPTH {
            return Err(message.error(format!("types nest deeper than {MAX_DEPTH}")));
        }
        let mut ty = None;
        for field in message.fields() {
            let field = field?;
            let inner = field.message()?;
            ty = Some(match field.number {
                value_type::TENSOR => ValueType::Tensor(tensor_type(inner)?),
                value_type::STATE => {
                    let mut wrapped = None;
                    for field in inner.fields() {
                        wrapped = Some(self.value_type(field?.message()?, depth + 1)?);
                    }
                    match wrapped {
                        Some(ValueType::Tensor(t)) => ValueType::State(t),
                        _ => return Err(inner.error("a state should wrap a tensor")),
                    }
                }
                value_type::LIST => {
                    let (mut element, mut length) = (None, Dim::Unknown);
                    for field in inner.fields() {
                        let field = field?;
                        match field.number {
                            1 => element = Some(self.value_type(field.message()?, depth + 1)?),
                            2 => length = dimension(field.message()?)?,
                            _ => {}
                        }
                    }
                    let element = element.ok_or_else(|| inner.error("a list without element type"))?;
                    ValueType::List(Box::new(element), length)
                }
                value_type::TUPLE => {
                    let mut types = Vec::new();
                    for field in inner.fields() {
                        let element = field?.message()?;
                        self.spend(&element)?;
                        types.push(self.value_type(element, depth + 1)?);
                    }
                    ValueType::Tuple(types)
                }
                value_type::DICTIONARY => {
                    let (mut key, mut value) = (None, None);
                    for field in inner.fields() {
                        let field = field?;
                        let ty = self.value_type(field.message()?, depth + 1)?;
                        match field.number {
                            1 => key = Some(ty),
                            2 => value = Some(ty),
                            _ => {}
                        }
                    }
                    let (key, value) = key.zip(value).ok_or_else(|| inner.error("a dictionary without its types"))?;
                    ValueType::Dictionary(Box::new(key), Box::new(value))
                }
                other => return Err(message.error(format!("a type of kind {other}, which does not exist"))),
            });
        }
        ty.ok_or_else(|| message.error("an empty type"))
    }

    fn literal(&mut self, message: Message<'_>, depth: usize) -> Result<Literal> {
        if depth > MAX_DEPTH {
            return Err(message.error(format!("values nest deeper than {MAX_DEPTH}")));
        }
        self.spend(&message)?;
        let (mut ty, mut immediate, mut blob) = (None, None, None);
        for field in message.fields() {
            let field = field?;
            match field.number {
                value::DOC if !field.bytes()?.is_empty() => {
                    return Err(message.error("a value's doc string would be lost"));
                }
                value::TYPE => ty = Some(self.value_type(field.message()?, depth)?),
                value::IMMEDIATE => immediate = Some(field.message()?),
                value::BLOB => blob = Some(field.message()?),
                _ => {}
            }
        }
        let ty = ty.ok_or_else(|| message.error("a value without type"))?;
        let payload = match (blob, immediate, &ty) {
            (Some(blob), None, ValueType::Tensor(t)) => {
                let (mut file, mut offset) = ("", 0);
                for field in blob.fields() {
                    let field = field?;
                    match field.number {
                        blob::FILE => file = field.string()?,
                        blob::OFFSET => offset = field.u64()?,
                        _ => {}
                    }
                }
                Payload::Blob(self.weights.blob(file, offset, t, self.notes)?)
            }
            (None, Some(immediate), ty) => self.immediate(immediate, ty, depth)?,
            _ => return Err(message.error(format!("a value of type {ty} without content"))),
        };
        Ok(Literal { ty, payload })
    }

    fn immediate(&mut self, message: Message<'_>, ty: &ValueType, depth: usize) -> Result<Payload> {
        let mut payload = None;
        for field in message.fields() {
            let field = field?;
            let inner = field.message()?;
            payload = Some(match (field.number, ty) {
                (immediate::TENSOR, ValueType::Tensor(ty)) => self.tensor(inner, ty)?,
                (immediate::TUPLE, ValueType::Tuple(_)) | (immediate::LIST, ValueType::List(..)) => {
                    let mut items = Vec::new();
                    for field in inner.fields() {
                        items.push(self.literal(field?.message()?, depth + 1)?);
                    }
                    Payload::Aggregate(items.into())
                }
                (immediate::DICTIONARY, ValueType::Dictionary(..)) => {
                    let mut items = Vec::new();
                    for field in inner.fields() {
                        let pair = field?.message()?;
                        let (mut key, mut value) = (None, None);
                        for field in pair.fields() {
                            let field = field?;
                            match field.number {
                                1 => key = Some(self.literal(field.message()?, depth + 1)?),
                                2 => value = Some(self.literal(field.message()?, depth + 1)?),
                                _ => {}
                            }
                        }
                        let (key, value) = key.zip(value).ok_or_else(|| pair.error("half a dictionary entry"))?;
                        items.extend([key, value]);
                    }
                    Payload::Aggregate(items.into())
                }
                _ => return Err(inner.error(format!("the content does not fit its type, {ty}"))),
            });
        }
        payload.ok_or_else(|| message.error(format!("a value of type {ty} without content")))
    }

    /// The elements of a tensor literal, each type from the one field that holds it.
    fn tensor(&mut self, message: Message<'_>, ty: &TensorType) -> Result<Payload> {
        let expected = ty.elements().ok_or_else(|| message.error(format!("a literal of type {ty}")))?;
        let wanted = schema::tensor_field(ty.dtype);
        let (mut bytes, mut strings) = (Vec::new(), Vec::new());
        for field in message.fields() {
            let field = field?;
            let inner = field.message()?;
            if field.number != wanted {
                let message = format!("elements of {} in field {}, expected field {wanted}", ty.dtype, field.number);
                return Err(inner.error(message));
            }
            for field in inner.fields() {
                let field = field?;
                match ty.dtype {
                    Dtype::String => {
                        self.spend(&inner)?;
                        strings.push(field.string()?.to_owned());
                    }
                    Dtype::Bool => field.numbers(|v| {
                        bytes.push(u8::from(v != 0));
                        Ok(())
                    })?,
                    Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::I64 | Dtype::U64 => field.numbers(|v| {
                        let signed = v as i64;
                        let fits = match ty.dtype {
                            Dtype::I16 => i16::try_from(signed).is_ok(),
                            Dtype::U16 => u16::try_from(signed).is_ok(),
                            Dtype::I32 => i32::try_from(signed).is_ok(),
                            _ => true,
                        };
                        if !fits {
                            return Err(inner.error(format!("{signed} does not fit {}", ty.dtype)));
                        }
                        bytes.extend_from_slice(&v.to_le_bytes()[..ty.dtype.bits() / 8]);
                        Ok(())
                    })?,
                    Dtype::F32 => bytes.extend_from_slice(field.fixed(4)?),
                    Dtype::F64 => bytes.extend_from_slice(field.fixed(8)?),
                    _ => bytes.extend_from_slice(field.bytes()?),
                }
            }
        }
        if ty.dtype == Dtype::String {
            if strings.len() != expected {
                return Err(message.error(format!("{} strings for {ty}", strings.len())));
            }
            return Ok(Payload::Strings(strings.into()));
        }
        if ty.bytes() != Some(bytes.len()) {
            return Err(message.error(format!("{} bytes of elements for {ty}, which has {expected}", bytes.len())));
        }
        Ok(Payload::Bytes(Arc::from(bytes)))
    }
}

/// A function's body while it is read.
struct Body<'a> {
    function: &'a str,
    values: Vec<Value>,
    names: HashMap<String, ValueId>,
    ops: Vec<Op>,
    message: Message<'a>,
}

/// Where in a body an error is.
struct AtOp<'a> {
    function: &'a str,
    op: Option<(usize, String)>,
}

impl AtOp<'_> {
    fn error(self, message: impl Into<String>) -> ReadError {
        ReadError::Program { function: self.function.to_owned(), op: self.op, message: message.into() }
    }
}

impl<'a> Body<'a> {
    fn define(&mut self, value: Value) -> ValueId {
        // The node budget is far below 2^32.
        let id = ValueId(self.values.len() as u32);
        self.names.insert(value.name.clone(), id);
        self.values.push(value);
        id
    }

    fn at(&self, kind: Option<&str>) -> AtOp<'a> {
        AtOp { function: self.function, op: kind.map(|k| (self.ops.len(), k.to_owned())) }
    }

    /// Whether any op of the block defines a name: asked once, for an error message.
    fn defined_later(&self, name: &str) -> bool {
        let outputs = self.message.fields().flatten().filter(|f| f.number == block::OPERATIONS).flat_map(|f| {
            f.message().into_iter().flat_map(Message::fields).flatten().filter(|f| f.number == operation::OUTPUTS)
        });
        let mut names = outputs.flat_map(|f| f.message().into_iter().flat_map(Message::fields).flatten());
        names.any(|f| f.number == named_type::NAME && f.string().is_ok_and(|s| s == name))
    }
}

fn size(n: i64, message: Message<'_>) -> Result<usize> {
    match usize::try_from(n) {
        Ok(n) if n <= MAX_DIM => Ok(n),
        _ => Err(message.error(format!("a dimension of {n}"))),
    }
}

fn dims(field: Field<'_>, message: Message<'_>, into: &mut Vec<usize>) -> Result<()> {
    field.numbers(|n| {
        if into.len() == MAX_RANK {
            return Err(message.error(format!("more than {MAX_RANK} dimensions")));
        }
        into.push(size(n as i64, message)?);
        Ok(())
    })
}

fn dimension(message: Message<'_>) -> Result<Dim> {
    let mut dim = None;
    for field in message.fields() {
        let field = field?;
        dim = Some(match field.number {
            dimension::CONSTANT => {
                let inner = field.message()?;
                let mut n = 0;
                for field in inner.fields() {
                    n = field?.i64()?;
                }
                Dim::Fixed(size(n, inner)?)
            }
            dimension::UNKNOWN => Dim::Unknown,
            other => return Err(message.error(format!("a dimension of kind {other}"))),
        });
    }
    dim.ok_or_else(|| message.error("an empty dimension"))
}

fn tensor_type(message: Message<'_>) -> Result<TensorType> {
    let (mut dtype, mut rank, mut shape) = (0, 0, Vec::new());
    for field in message.fields() {
        let field = field?;
        match field.number {
            tensor_type::DATA_TYPE => dtype = field.u64()?,
            tensor_type::RANK => rank = field.i64()?,
            tensor_type::DIMENSIONS => {
                if shape.len() == MAX_RANK {
                    return Err(message.error(format!("more than {MAX_RANK} dimensions")));
                }
                shape.push(dimension(field.message()?)?);
            }
            tensor_type::ATTRIBUTES => return Err(message.error("a tensor type has attributes")),
            _ => {}
        }
    }
    let dtype = schema::dtype(dtype).ok_or_else(|| message.error(format!("element type {dtype} does not exist")))?;
    if usize::try_from(rank) != Ok(shape.len()) {
        return Err(message.error(format!("a tensor type of rank {rank} with {} dimensions", shape.len())));
    }
    Ok(TensorType { dtype, shape })
}
