//! From an op to something that runs.
//!
//! A kernel is made in two steps. At load, a [`Prepare`] function looks at the op through a [`Site`]: it names its run-time
//! operands, reads its constant parameters, and refuses what it cannot do. What it returns, the [`Kernel`], runs with
//! nothing left to look up: values in, values out. Shapes are taken from the values themselves, so one kernel serves
//! every shape a flexible program may be called with.
//!
//! **A parameter that no kernel asked for is an error at load, never ignored.**

use std::collections::{BTreeSet, HashMap};

use anemone_mil::ir::{Arg, Dtype, ValueId};
use anemone_mil::ops::{Call, Opset};

use super::Fault;
use super::constants::Constant;
use super::context::Context;
use super::value::Value;

/// Makes an op's kernel, or says why it cannot.
pub type Prepare = fn(&mut Site<'_>) -> Result<Kernel, Fault>;

/// What an op does to its operands.
pub struct Kernel {
    run: Box<Run>,
    moves: bool,
}

type Run = dyn Fn(&mut Args, &mut Context<'_>) -> Result<Vec<Value>, Fault> + Send + Sync;

impl Kernel {
    /// A kernel that computes: its float results are rounded to their type afterwards.
    pub fn computes(
        f: impl Fn(&mut Args, &mut Context<'_>) -> Result<Vec<Value>, Fault> + Send + Sync + 'static,
    ) -> Result<Self, Fault> {
        Ok(Self { run: Box::new(f), moves: false })
    }

    /// A kernel that moves elements without changing them.
    pub fn moves(
        f: impl Fn(&mut Args, &mut Context<'_>) -> Result<Vec<Value>, Fault> + Send + Sync + 'static,
    ) -> Result<Self, Fault> {
        Ok(Self { run: Box::new(f), moves: true })
    }

    /// Runs it.
    pub fn run(&self, args: &mut Args, context: &mut Context<'_>) -> Result<Vec<Value>, Fault> {
        (self.run)(args, context)
    }

    /// Whether its results hold nothing but elements of its operands.
    pub fn only_moves(&self) -> bool {
        self.moves
    }
}

/// A run-time operand's place in [`Args`].
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize);

/// The operands of one call.
///
/// Values that nothing uses afterwards arrive without other owners: a kernel that takes one may find it [unique] and work in
/// place.
///
/// [unique]: super::value::Buf::unique
pub struct Args(Vec<Option<Value>>);

impl Args {
    /// The operands in the order in which the site named them.
    pub fn new(values: Vec<Option<Value>>) -> Self {
        Self(values)
    }

    /// An operand.
    ///
    /// # Panics
    /// If it has been taken.
    pub fn get(&self, slot: Slot) -> &Value {
        self.0[slot.0].as_ref().expect("a kernel reads an operand it has not taken")
    }

    /// An operand, out of the arguments.
    ///
    /// # Panics
    /// If it has been taken before.
    pub fn take(&mut self, slot: Slot) -> Value {
        self.0[slot.0].take().expect("a kernel takes an operand once")
    }

    /// The operands that have not been taken.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().flatten()
    }

    /// What the kernel has left.
    pub fn rest(self) -> impl Iterator<Item = Value> {
        self.0.into_iter().flatten()
    }
}

/// Where a run-time operand comes from.
pub enum Operand {
    /// A value computed at run time.
    Value(ValueId),
    /// A constant.
    Constant(Value),
}

/// An op while its kernel is being made.
///
/// Parameters that a program leaves out have the op table's default.
pub struct Site<'a> {
    call: Call<'a>,
    constants: &'a HashMap<ValueId, Constant>,
    operands: Vec<Operand>,
    asked: BTreeSet<String>,
}

impl<'a> Site<'a> {
    /// The site of one use of an op, with what is known of its function's constants.
    pub fn new(call: Call<'a>, constants: &'a HashMap<ValueId, Constant>) -> Self {
        Self { call, constants, operands: Vec::new(), asked: BTreeSet::new() }
    }

    /// The op's type.
    pub fn kind(&self) -> &'static str {
        self.call.spec().name
    }

    /// The opset whose definitions hold.
    pub fn opset(&self) -> Opset {
        self.call.opset()
    }

    /// How many values the op defines.
    pub fn output_count(&self) -> usize {
        self.call.op().outputs.len()
    }

    /// The declared type of the first output.
    pub fn output_dtype(&self) -> Option<Dtype> {
        self.call.outputs().next().map(|t| t.dtype)
    }

    /// The run-time operands named so far, once every parameter has been asked for.
    pub fn finish(self) -> Result<Vec<Operand>, Fault> {
        match self.call.op().inputs.keys().find(|k| !self.asked.contains(*k)) {
            Some(unknown) => Err(Fault::new(format!("parameter `{unknown}` is not supported"))),
            None => Ok(self.operands),
        }
    }

    fn args(&mut self, name: &str) -> &'a [Arg] {
        self.asked.insert(name.to_owned());
        self.call.op().inputs.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    /// What an argument is bound to, if that is known before the program runs.
    fn known(&self, arg: &Arg) -> Result<Option<Constant>, Fault> {
        match arg {
            Arg::Value(id) => Ok(self.constants.get(id).cloned()),
            Arg::Literal(literal) => Ok(Some(Constant::new(literal.clone()))),
        }
    }

    /// The constant that a parameter without argument stands for.
    fn default(&self, name: &str) -> Result<Option<Constant>, Fault> {
        let literal = self.call.spec().param(name).and_then(|p| self.call.default_literal(p));
        Ok(literal.map(Constant::new))
    }

    fn push(&mut self, operand: Operand) -> Slot {
        self.operands.push(operand);
        Slot(self.operands.len() - 1)
    }

    fn push_arg(&mut self, arg: &Arg, stored: bool) -> Result<Slot, Fault> {
        let operand = match (self.known(arg)?, arg) {
            (Some(c), _) => Operand::Constant(if stored { c.stored()? } else { c.dense()? }),
            (None, Arg::Value(id)) => Operand::Value(*id),
            (None, Arg::Literal(literal)) => return Err(Fault::new(format!("cannot use a literal {}", literal.ty))),
        };
        Ok(self.push(operand))
    }

    /// An operand that may be absent.
    pub fn optional(&mut self, name: &str) -> Result<Option<Slot>, Fault> {
        match self.args(name) {
            [] => match self.default(name)? {
                Some(constant) => Ok(Some(self.push(Operand::Constant(constant.dense()?)))),
                None => Ok(None),
            },
            [arg] => self.push_arg(arg, false).map(Some),
            args => Err(several(name, args)),
        }
    }

    /// A required operand.
    pub fn operand(&mut self, name: &str) -> Result<Slot, Fault> {
        self.optional(name)?.ok_or_else(|| missing(name))
    }

    /// A required operand that the kernel accepts in its stored form, should it be an fp16 constant.
    pub fn weight(&mut self, name: &str) -> Result<Slot, Fault> {
        match self.args(name) {
            [] => Err(missing(name)),
            [arg] => self.push_arg(arg, true),
            args => Err(several(name, args)),
        }
    }

    /// The operands of a parameter that takes several; at least one.
    pub fn several(&mut self, name: &str) -> Result<Vec<Slot>, Fault> {
        match self.args(name) {
            [] => Err(missing(name)),
            args => args.iter().map(|arg| self.push_arg(arg, false)).collect(),
        }
    }

    fn constant(&mut self, name: &str) -> Result<Option<Constant>, Fault> {
        match self.args(name) {
            [] => self.default(name),
            [arg] => match self.known(arg)? {
                Some(c) => Ok(Some(c)),
                None => Err(Fault::new(format!("parameter `{name}` must be a constant"))),
            },
            args => Err(several(name, args)),
        }
    }

    /// Constant integers or bools; `None` where the parameter is absent and has no default.
    pub fn ints(&mut self, name: &str) -> Result<Option<Vec<i32>>, Fault> {
        self.constant(name)?.map(|c| Ok(c.dense()?.i32s()?.to_vec())).transpose()
    }

    /// A constant integer.
    pub fn int(&mut self, name: &str) -> Result<i32, Fault> {
        single(name, self.ints(name)?)
    }

    /// A constant bool.
    pub fn flag(&mut self, name: &str) -> Result<bool, Fault> {
        Ok(self.int(name)? != 0)
    }

    /// Constant floats; `None` where the parameter is absent and has no default.
    pub fn floats(&mut self, name: &str) -> Result<Option<Vec<f32>>, Fault> {
        self.constant(name)?.map(|c| Ok(c.dense()?.f32s()?.to_vec())).transpose()
    }

    /// A constant float.
    pub fn float(&mut self, name: &str) -> Result<f32, Fault> {
        single(name, self.floats(name)?)
    }

    /// A constant string.
    pub fn text(&mut self, name: &str) -> Result<String, Fault> {
        let constant = self.constant(name)?.ok_or_else(|| missing(name))?;
        let text = constant.text().ok_or_else(|| Fault::new(format!("parameter `{name}` must be a string")))?;
        Ok(text.to_owned())
    }
}

fn missing(name: &str) -> Fault {
    Fault::new(format!("parameter `{name}` is missing"))
}

fn several(name: &str, args: &[Arg]) -> Fault {
    Fault::new(format!("parameter `{name}` has {} arguments, expected one", args.len()))
}

fn single<T: Copy>(name: &str, v: Option<Vec<T>>) -> Result<T, Fault> {
    match v.as_deref() {
        Some([one]) => Ok(*one),
        Some(v) => Err(Fault::new(format!("parameter `{name}` has {} elements, expected one", v.len()))),
        None => Err(missing(name)),
    }
}
