//! Compute plans: where Core ML would run each op.

use objc2::ClassType;
use objc2::runtime::{NSObjectProtocol, ProtocolObject};
use objc2_core_ml::{
    MLCPUComputeDevice, MLComputeDeviceProtocol, MLComputePlan, MLGPUComputeDevice, MLModelStructureProgramBlock,
    MLNeuralEngineComputeDevice,
};

use super::unexpected;
use crate::failure::Failure;
use crate::foreign::{Device, OpUsage};

/// Every op of every function, functions in the order of their names.
pub fn usages(plan: &MLComputePlan) -> Result<Vec<OpUsage>, Failure> {
    // SAFETY: plain getters.
    let program = unsafe { plan.modelStructure().program() };
    let program = program.ok_or_else(|| unexpected("the compute plan is not one of an ML Program"))?;
    // SAFETY: a plain getter.
    let (names, functions) = unsafe { program.functions() }.to_vecs();
    let mut functions: Vec<_> = names.iter().map(|n| n.to_string()).zip(functions).collect();
    functions.sort_by(|a, b| a.0.cmp(&b.0));
    let mut usages = Vec::new();
    for (name, function) in functions {
        // SAFETY: a plain getter.
        let body = unsafe { function.block() };
        block(plan, &name, &body, &mut usages);
    }
    Ok(usages)
}

fn block(plan: &MLComputePlan, function: &str, block: &MLModelStructureProgramBlock, usages: &mut Vec<OpUsage>) {
    // SAFETY: plain getters, all in this function.
    unsafe {
        for op in block.operations().iter() {
            let usage = plan.computeDeviceUsageForMLProgramOperation(&op);
            usages.push(OpUsage {
                function: function.to_owned(),
                kind: op.operatorName().to_string(),
                outputs: op.outputs().iter().map(|o| o.name().to_string()).collect(),
                preferred: usage.as_ref().map(|u| device(&u.preferredComputeDevice())),
                supported: usage
                    .map(|u| u.supportedComputeDevices().iter().map(|d| device(&d)).collect())
                    .unwrap_or_default(),
                cost: plan.estimatedCostOfMLProgramOperation(&op).map(|c| c.weight()),
            });
            // Loops and branches have bodies.
            for inner in op.blocks().iter() {
                self::block(plan, function, &inner, usages);
            }
        }
    }
}

fn device(device: &ProtocolObject<dyn MLComputeDeviceProtocol>) -> Device {
    let kinds = [
        (MLNeuralEngineComputeDevice::class(), Device::NeuralEngine),
        (MLCPUComputeDevice::class(), Device::Cpu),
        (MLGPUComputeDevice::class(), Device::Gpu),
    ];
    kinds.into_iter().find(|(class, _)| device.isKindOfClass(class)).map_or(Device::Other, |(_, kind)| kind)
}
