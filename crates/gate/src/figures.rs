//! How far two rows of numbers are apart.

use serde::{Deserialize, Serialize};

/// A comparison of one token's row, or the worst over several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Cosine of the angle between the rows: 1 where they point the same way.
    pub cosine: f64,
    /// Root of the mean squared difference, in units of the reference row's own root mean square.
    pub relative_rmse: f64,
    /// Root of the mean squared difference.
    pub rmse: f64,
    /// The largest difference.
    pub max_abs: f64,
    /// Values that are NaN or infinite in the row under test.
    pub not_finite: usize,
}

impl Figures {
    /// What two equal rows give.
    pub const EQUAL: Self = Self { cosine: 1.0, relative_rmse: 0.0, rmse: 0.0, max_abs: 0.0, not_finite: 0 };

    /// Compares `found` with `expected`, which are of one length. Sums are taken in f64.
    pub fn of(found: &[f32], expected: &[f32]) -> Self {
        let (mut dot, mut ff, mut ee, mut dd, mut max_abs) = (0.0f64, 0.0f64, 0.0f64, 0.0f64, 0.0f64);
        let mut not_finite = 0;
        for (&f, &e) in found.iter().zip(expected) {
            let (f, e) = (f64::from(f), f64::from(e));
            not_finite += usize::from(!f.is_finite());
            (dot, ff, ee) = (dot + f * e, ff + f * f, ee + e * e);
            dd += (f - e) * (f - e);
            max_abs = max_abs.max((f - e).abs());
        }
        let n = expected.len().max(1) as f64;
        let norm = (ff * ee).sqrt();
        let cosine = if ff == 0.0 && ee == 0.0 { 1.0 } else { dot / norm };
        let relative_rmse = if dd == 0.0 { 0.0 } else { (dd / ee).sqrt() };
        Self { cosine, relative_rmse, rmse: (dd / n).sqrt(), max_abs, not_finite }
    }

    /// The worse of each figure. A NaN counts as the worst there is.
    pub fn worst(self, other: Self) -> Self {
        let low = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) };
        let high = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
        Self {
            cosine: low(self.cosine, other.cosine),
            relative_rmse: high(self.relative_rmse, other.relative_rmse),
            rmse: high(self.rmse, other.rmse),
            max_abs: high(self.max_abs, other.max_abs),
            not_finite: self.not_finite + other.not_finite,
        }
    }

    /// Whether these figures are finite and within `bounds`. A NaN is within nothing.
    pub fn within(&self, bounds: &Bounds) -> bool {
        self.not_finite == 0 && self.cosine >= bounds.cosine && self.relative_rmse <= bounds.relative_rmse
    }
}

/// The figures of each row of `width` numbers, in order.
pub fn rows(found: &[f32], expected: &[f32], width: usize) -> Vec<Figures> {
    let pairs = found.chunks_exact(width).zip(expected.chunks_exact(width));
    pairs.map(|(found, expected)| Figures::of(found, expected)).collect()
}

/// The worst of each figure over all of them.
pub fn worst_of(all: impl IntoIterator<Item = Figures>) -> Figures {
    all.into_iter().fold(Figures::EQUAL, Figures::worst)
}

/// What a comparison must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bounds {
    /// At least this.
    pub cosine: f64,
    /// At most this.
    pub relative_rmse: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_never_within() {
        let bounds = Bounds { cosine: -1.0, relative_rmse: f64::MAX };
        let nan = Figures::of(&[f32::NAN, 1.0], &[1.0, 1.0]);
        assert!(!nan.within(&bounds) && !Figures::EQUAL.worst(nan).within(&bounds));
        assert!(Figures::of(&[1.0, 1.0], &[1.0, 1.0]).within(&Bounds { cosine: 1.0, relative_rmse: 0.0 }));
    }
}
