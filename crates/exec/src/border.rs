//! What crosses the border of a function: its signature, read from the program once, and the check of what callers give.

use anemone_mil::ir::{Dtype, Feature, Flexibility, Function, TensorType, ValueType};

use crate::runtime::Error;
use crate::tensor::Tensor;

/// The inputs, outputs and states of one function.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The function's name.
    pub name: String,
    /// Inputs in the program's order.
    pub inputs: Vec<Port>,
    /// Outputs in the program's order.
    pub outputs: Vec<Port>,
    /// States.
    pub states: Vec<Port>,
}

/// A named array that crosses the border.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The declared element type.
    pub dtype: Dtype,
    /// The declared shape; `None` where a dimension is only known at run time.
    pub shape: Vec<Option<usize>>,
}

impl Port {
    fn of(name: &str, ty: &TensorType) -> Self {
        Self { name: name.to_owned(), dtype: ty.dtype, shape: ty.shape.iter().map(|d| d.fixed()).collect() }
    }
}

impl Signature {
    /// The signature of a function.
    pub fn of(function: &Function) -> Self {
        let mut signature = Self { name: function.name.clone(), inputs: vec![], outputs: vec![], states: vec![] };
        for &id in &function.inputs {
            let value = function.value(id);
            match &value.ty {
                ValueType::Tensor(ty) => signature.inputs.push(Port::of(&value.name, ty)),
                ValueType::State(ty) => signature.states.push(Port::of(&value.name, ty)),
                _ => {}
            }
        }
        for &id in &function.outputs {
            let value = function.value(id);
            if let ValueType::Tensor(ty) = &value.ty {
                signature.outputs.push(Port::of(&value.name, ty));
            }
        }
        signature
    }

    /// What the model description says of each input.
    pub fn features(&self, function: &Function) -> Vec<Option<Feature>> {
        let described = &function.interface.inputs;
        self.inputs.iter().map(|port| described.iter().find(|f| f.name == port.name).cloned()).collect()
    }

    /// The index of an input by name.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|p| p.name == name)
    }

    /// The index of an output by name.
    pub fn output(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|p| p.name == name)
    }

    /// Why an input is refused.
    pub fn refuse(&self, input: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
        let (function, input) = (self.name.clone(), input.to_owned());
        Error::Input { function, input, expected: expected.into(), found: found.into() }
    }

    /// Checks what is given against what the signature and the description ([`features`](Self::features)) ask for. `float`
    /// is the type in which fp16 is given.
    pub fn check(&self, features: &[Option<Feature>], float: Dtype, inputs: &[&Tensor]) -> Result<(), Error> {
        self.check_kinds(float, inputs)?;
        for ((port, feature), tensor) in self.inputs.iter().zip(features).zip(inputs) {
            let shape = tensor.shape();
            let fits = shape.len() == port.shape.len()
                && port.shape.iter().zip(shape).all(|(p, &d)| p.is_none_or(|p| p == d))
                && feature.as_ref().is_none_or(|f| allowed(f, shape));
            if !fits {
                let expected = feature.as_ref().map_or_else(|| format!("shape {:?}", port.shape), shapes);
                return Err(self.refuse(&port.name, expected, format!("shape {shape:?}")));
            }
        }
        Ok(())
    }

    /// Checks how many tensors are given, and their types.
    pub(crate) fn check_kinds(&self, float: Dtype, inputs: &[&Tensor]) -> Result<(), Error> {
        if inputs.len() != self.inputs.len() {
            let missing = self.inputs.get(inputs.len()).map_or("", |p| p.name.as_str());
            return Err(self.refuse(missing, format!("{} inputs", self.inputs.len()), inputs.len().to_string()));
        }
        for (port, tensor) in self.inputs.iter().zip(inputs) {
            let dtype = if port.dtype == Dtype::F16 { float } else { port.dtype };
            if tensor.dtype() != dtype {
                return Err(self.refuse(&port.name, dtype.to_string(), tensor.dtype().to_string()));
            }
        }
        Ok(())
    }
}

/// Whether the description allows an input of that shape.
fn allowed(feature: &Feature, shape: &[usize]) -> bool {
    let default = feature.shape.as_deref() == Some(shape);
    match &feature.flexibility {
        Flexibility::Fixed => feature.shape.is_none() || default,
        Flexibility::Enumerated(shapes) => default || shapes.iter().any(|s| s == shape),
        Flexibility::Range(bounds) => {
            bounds.len() == shape.len()
                && bounds.iter().zip(shape).all(|((low, high), d)| d >= low && high.is_none_or(|h| *d <= h))
        }
    }
}

/// The shapes the description allows, in words.
fn shapes(feature: &Feature) -> String {
    match (&feature.flexibility, &feature.shape) {
        (Flexibility::Enumerated(shapes), _) => format!("one of the shapes {shapes:?}"),
        (Flexibility::Range(bounds), _) => {
            let dims: Vec<String> = bounds
                .iter()
                .map(|(low, high)| high.map_or(format!("{low} or more"), |h| format!("{low} to {h}")))
                .collect();
            format!("a shape within [{}]", dims.join(", "))
        }
        (Flexibility::Fixed, shape) => format!("shape {:?}", shape.as_deref().unwrap_or_default()),
    }
}
