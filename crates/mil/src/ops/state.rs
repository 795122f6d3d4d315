//! Reading and writing states: the only ops whose order matters.

use super::dtypes::MOVABLE;
use super::{OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError, shape};

const PLACEMENT: &str = "last dimension a multiple of 32; few large states per program rather than many";

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "read_state",
        opset: Opset::CoreMl8,
        place: Place::Inputs,
        params: &[Param::required("input", MOVABLE).state()],
        outputs: Outputs::Fixed(1),
        infer: |call| Ok(vec![call.ty("input")?.clone()]),
        tolerance: Tolerance::Exact,
        placement: PLACEMENT,
        doc: "A copy of the state as it is at this point of the program.",
    },
    OpSpec {
        name: "write_state",
        opset: Opset::CoreMl8,
        place: Place::Inputs,
        params: &[Param::required("input", MOVABLE).state(), Param::required("data", MOVABLE)],
        outputs: Outputs::Fixed(0),
        infer: |call| {
            let (state, data) = (call.ty("input")?, call.ty("data")?);
            if !shape::types_agree(state, data) {
                return Err(TypeError::new("write-state-type", format!("the state wraps {state}, `data` is {data}")));
            }
            Ok(Vec::new())
        },
        tolerance: Tolerance::Exact,
        placement: "a whole cache updated by mask or by a full `slice_update` was seen on the Neural Engine; row writes at a run-time index were not",
        doc: "Replaces the state. Defines nothing; a later `read_state` sees it.",
    },
];
