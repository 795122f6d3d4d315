//! Descriptions, predictions and states.

use std::ptr::NonNull;

use block2::RcBlock;
use objc2::AnyThread;
use objc2::rc::Retained;
use objc2::runtime::{AnyObject, ProtocolObject};
use objc2_core_ml::{
    MLDictionaryFeatureProvider, MLFeatureDescription, MLFeatureProvider, MLFeatureValue, MLModel, MLMultiArray,
    MLPredictionOptions, MLState,
};
use objc2_foundation::{NSArray, NSDictionary, NSNumber, NSString};

use super::{arrays, failure, unexpected};
use crate::array::Array;
use crate::failure::Failure;
use crate::foreign::{Described, Description, Returned};

/// What Core ML says of a model.
pub fn describe(model: &MLModel) -> Description {
    // SAFETY: plain getters.
    unsafe {
        let description = model.modelDescription();
        Description {
            inputs: all(&description.inputDescriptionsByName()),
            outputs: all(&description.outputDescriptionsByName()),
            states: all(&description.stateDescriptionsByName()),
        }
    }
}

fn all(features: &NSDictionary<NSString, MLFeatureDescription>) -> Vec<Described> {
    let (names, features) = features.to_vecs();
    names.iter().zip(&features).map(|(name, feature)| described(name, feature)).collect()
}

fn described(name: &NSString, feature: &MLFeatureDescription) -> Described {
    let array = |dtype, shape: &NSArray<NSNumber>| Described {
        name: name.to_string(),
        dtype: arrays::dtype(dtype),
        shape: arrays::sizes(shape),
    };
    // SAFETY: plain getters.
    unsafe {
        match (feature.multiArrayConstraint(), feature.stateConstraint()) {
            (Some(c), _) => array(c.dataType(), &c.shape()),
            (None, Some(c)) => array(c.dataType(), &c.bufferShape()),
            (None, None) => Described { name: name.to_string(), dtype: None, shape: Vec::new() },
        }
    }
}

/// One prediction: inputs and proposed outputs lie in our memory.
pub fn predict(
    model: &MLModel,
    inputs: &[(&str, &Array)],
    state: Option<&MLState>,
    wanted: &[(&str, Option<&Array>)],
) -> Result<Vec<Option<Returned>>, Failure> {
    let names: Vec<_> = inputs.iter().map(|(name, _)| NSString::from_str(name)).collect();
    let mut values: Vec<Retained<AnyObject>> = Vec::with_capacity(inputs.len());
    for (_, array) in inputs {
        let array = arrays::wrap(array)?;
        // SAFETY: a plain constructor.
        let value = unsafe { MLFeatureValue::featureValueWithMultiArray(&array) };
        values.push(value.into());
    }
    let keys: Vec<&NSString> = names.iter().map(|n| &**n).collect();
    let dictionary = NSDictionary::from_retained_objects(&keys, &values);
    // SAFETY: the dictionary's values are feature values.
    let provider = unsafe {
        MLDictionaryFeatureProvider::initWithDictionary_error(MLDictionaryFeatureProvider::alloc(), &dictionary)
    };
    let provider = provider.map_err(|error| failure(&error))?;

    let mut backings: Vec<Option<Retained<MLMultiArray>>> = Vec::with_capacity(wanted.len());
    for (_, array) in wanted {
        backings.push(array.map(arrays::wrap).transpose()?);
    }
    let proposed =
        wanted.iter().zip(&backings).filter_map(|((name, _), b)| Some((NSString::from_str(name), b.clone()?)));
    let (names, arrays): (Vec<_>, Vec<Retained<AnyObject>>) = proposed.map(|(n, b)| (n, b.into())).unzip();
    let keys: Vec<&NSString> = names.iter().map(|n| &**n).collect();
    let proposed = NSDictionary::from_retained_objects(&keys, &arrays);

    let provider = ProtocolObject::from_ref(&*provider);
    // SAFETY: the backings are arrays of the declared types, and the calls are synchronous.
    let results = unsafe {
        let options = MLPredictionOptions::new();
        options.setOutputBackings(&proposed);
        match state {
            Some(state) => model.predictionFromFeatures_usingState_options_error(provider, state, &options),
            None => model.predictionFromFeatures_options_error(provider, &options),
        }
    };
    let results = results.map_err(|error| failure(&error))?;
    let mut returned = Vec::with_capacity(wanted.len());
    for ((name, _), backing) in wanted.iter().zip(&backings) {
        // SAFETY: plain getters.
        let value = unsafe { results.featureValueForName(&NSString::from_str(name)).and_then(|v| v.multiArrayValue()) };
        returned.push(match value {
            None => None,
            // Core ML says that it used a backing by giving it back: identity, not equality.
            Some(array) if backing.as_ref().is_some_and(|b| Retained::as_ptr(b) == Retained::as_ptr(&array)) => {
                Some(Returned::InPlace)
            }
            Some(array) => Some(Returned::Elsewhere(arrays::copy(&array)?)),
        });
    }
    Ok(returned)
}

/// Copies one state's elements from one conversation to another, whatever their layouts.
pub fn copy_state(name: &NSString, from: &MLState, to: &MLState) -> Result<(), Failure> {
    let copied = std::cell::Cell::new(false);
    let read = RcBlock::new(|source: NonNull<MLMultiArray>| {
        let write = RcBlock::new(|target: NonNull<MLMultiArray>| {
            // SAFETY: Core ML gives both arrays for as long as the handlers run, and they have the same shape and type: the
            // slots above hold states of one name only where those agree.
            unsafe { source.as_ref().transferToMultiArray(target.as_ref()) };
            copied.set(true);
        });
        // SAFETY: the handler is called before the call returns, and not kept.
        unsafe { to.getMultiArrayForStateNamed_handler(name, &write) };
    });
    // SAFETY: the same.
    unsafe { from.getMultiArrayForStateNamed_handler(name, &read) };
    drop(read);
    if copied.get() { Ok(()) } else { Err(unexpected(&format!("state `{name}` was not given out to be copied"))) }
}
