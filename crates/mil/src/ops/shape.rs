//! Arithmetic on dimensions, some of which are only known at run time.
//!
//! Every sum and product is checked: the numbers come from files.

use crate::ir::{Dim, TensorType};

use super::TypeError;

/// The largest dimension accepted anywhere: what an int32 shape can say.
pub const MAX_DIM: usize = i32::MAX as usize;

/// The highest rank accepted anywhere. Core ML computes with five dimensions; palettes of such weights have seven.
pub const MAX_RANK: usize = 16;

/// The most bytes a default value may be made of (a zero bias).
pub const MAX_DEFAULT_BYTES: usize = 1 << 24;

/// A computed size as a dimension.
pub fn dim(what: &str, n: i64) -> Result<Dim, TypeError> {
    match usize::try_from(n) {
        Ok(n) if n <= MAX_DIM => Ok(Dim::Fixed(n)),
        _ => Err(TypeError::new("dimension", format!("{what} would be {n}"))),
    }
}

/// An axis counted from the front, from one that may count from the back.
pub fn axis(param: &str, a: i64, rank: usize) -> Result<usize, TypeError> {
    let r = rank as i64;
    if (-r..r).contains(&a) {
        Ok(a.rem_euclid(r) as usize)
    } else {
        Err(TypeError::new("axis", format!("`{param}` is {a}, out of range for rank {rank}")))
    }
}

/// The shape of an element-wise op on two shapes, by numpy's rule.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, TypeError> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(Dim::Fixed(1), |k| s[k]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (Dim::Fixed(1), d) | (d, Dim::Fixed(1)) => Ok(d),
            (Dim::Fixed(x), Dim::Fixed(y)) if x == y => Ok(Dim::Fixed(x)),
            (Dim::Fixed(_), Dim::Fixed(_)) => {
                Err(TypeError::new("broadcast", format!("shapes {} and {} do not broadcast", shown(a), shown(b))))
            }
            (Dim::Unknown, d @ Dim::Fixed(_)) | (d @ Dim::Fixed(_), Dim::Unknown) => Ok(d),
            (Dim::Unknown, Dim::Unknown) => Ok(Dim::Unknown),
        })
        .collect()
}

/// Whether two dimensions can be equal.
pub fn dims_agree(a: Dim, b: Dim) -> bool {
    match (a, b) {
        (Dim::Fixed(x), Dim::Fixed(y)) => x == y,
        _ => true,
    }
}

/// Whether two shapes can be equal.
pub fn shapes_agree(a: &[Dim], b: &[Dim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(&x, &y)| dims_agree(x, y))
}

/// Whether two types can be equal.
pub fn types_agree(a: &TensorType, b: &TensorType) -> bool {
    a.dtype == b.dtype && shapes_agree(&a.shape, &b.shape)
}

/// The product of dimensions: `Ok(None)` where one is unknown, an error where it does not fit.
pub fn product(what: &str, dims: &[Dim]) -> Result<Option<i64>, TypeError> {
    let mut n = 1i64;
    for d in dims {
        let Dim::Fixed(d) = *d else { return Ok(None) };
        n = i64::try_from(d)
            .ok()
            .and_then(|d| n.checked_mul(d))
            .ok_or_else(|| TypeError::new("dimension", format!("{what} has too many elements")))?;
    }
    Ok(Some(n))
}

/// A shape as it is printed.
pub fn shown(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}
