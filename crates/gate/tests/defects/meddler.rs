//! A runtime that spoils what passes through it: what a host or a device does wrong, without a defect in either.

use std::path::Path;

use anemone_exec::{Dtype, Error, Model, Runtime, Signature, State, Tensor};

use crate::case::portable;

/// One call, before and after it is made.
pub struct Call<'a> {
    pub signature: &'a Signature,
    pub inputs: &'a mut Vec<Tensor>,
}

impl Call<'_> {
    /// Changes an input's elements, where the function has it; `change` is given its shape.
    pub fn input(&mut self, name: &str, change: impl FnOnce(&mut Vec<f32>, &[usize])) {
        let Some(i) = self.signature.input(name) else { return };
        edit(&mut self.inputs[i], change);
    }

    /// The position of the first token, as the write mask says.
    pub fn position(&self) -> Option<usize> {
        let mask = &self.inputs[self.signature.input("kv_write_mask")?];
        let tokens = mask.shape()[3];
        mask.to_f32().chunks_exact(tokens).position(|row| row[0] == 1.0)
    }
}

pub fn edit(tensor: &mut Tensor, change: impl FnOnce(&mut Vec<f32>, &[usize])) {
    let (shape, mut values) = (tensor.shape().to_vec(), tensor.to_f32());
    change(&mut values, &shape);
    *tensor = Tensor::from_f32(&shape, values, tensor.dtype());
}

type Before = fn(&mut Call<'_>);
type After = fn(&Call<'_>, &mut Vec<Tensor>);

/// The portable runtime, spoiled.
#[derive(Clone, Copy)]
pub struct Meddler {
    pub before: Before,
    pub after: After,
    /// Whether every call begins with empty caches.
    pub forgets: bool,
}

impl Meddler {
    pub const NONE: Self = Self { before: |_| {}, after: |_, _| {}, forgets: false };
}

struct Meddled {
    inner: Box<dyn Model>,
    meddler: Meddler,
}

impl Runtime for Meddler {
    fn describe(&self) -> String {
        portable().describe()
    }

    fn load(&self, package: &Path) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(Meddled { inner: portable().load(package)?, meddler: *self }))
    }
}

impl Meddled {
    fn call(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        watch: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, Error> {
        let mut inputs: Vec<Tensor> = inputs.iter().map(|&t| t.clone()).collect();
        let signature = &self.inner.functions()[function];
        (self.meddler.before)(&mut Call { signature, inputs: &mut inputs });
        let given: Vec<&Tensor> = inputs.iter().collect();
        let mut outputs = match self.meddler.forgets {
            true => self.inner.run_watched(function, &given, &mut self.inner.new_state()?, watch)?,
            false => self.inner.run_watched(function, &given, state, watch)?,
        };
        (self.meddler.after)(&Call { signature, inputs: &mut inputs }, &mut outputs);
        Ok(outputs)
    }
}

impl Model for Meddled {
    fn functions(&self) -> &[Signature] {
        self.inner.functions()
    }

    fn default_function(&self) -> usize {
        self.inner.default_function()
    }

    fn float(&self) -> Dtype {
        self.inner.float()
    }

    fn metadata(&self, key: &str) -> Option<&str> {
        self.inner.metadata(key)
    }

    fn new_state(&self) -> Result<State, Error> {
        self.inner.new_state()
    }

    fn run(&self, function: usize, inputs: &[&Tensor], state: &mut State) -> Result<Vec<Tensor>, Error> {
        self.call(function, inputs, state, &mut |_, _| {})
    }

    fn run_watched(
        &self,
        function: usize,
        inputs: &[&Tensor],
        state: &mut State,
        watch: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Vec<Tensor>, Error> {
        self.call(function, inputs, state, watch)
    }
}
