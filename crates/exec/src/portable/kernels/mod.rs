//! The kernels, one file per family, and the table that finds them.

mod attention;
mod conv;
mod elementwise;
mod gather;
mod matmul;
mod normalise;
mod reduce;
mod shape;
mod slice;
mod sort;

use super::kernel::Prepare;

/// The kernel of an op type. State ops and constants have none: the plan itself deals with them.
pub fn lookup(kind: &str) -> Option<Prepare> {
    [
        attention::lookup,
        conv::lookup,
        elementwise::lookup,
        gather::lookup,
        matmul::lookup,
        normalise::lookup,
        reduce::lookup,
        shape::lookup,
        slice::lookup,
        sort::lookup,
    ]
    .into_iter()
    .find_map(|family| family(kind))
}

#[cfg(test)]
mod tests {
    use anemone_mil::ops;

    #[test]
    fn every_op_of_the_table_has_a_kernel() {
        let stateful = |name: &str| matches!(name, "read_state" | "write_state");
        let missing: Vec<&str> = ops::all()
            .filter(|spec| !spec.is_constant() && !stateful(spec.name) && super::lookup(spec.name).is_none())
            .map(|spec| spec.name)
            .collect();
        assert_eq!(missing, [""; 0], "ops without a kernel");
    }
}
