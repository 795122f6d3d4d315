//! Iteration over several arrays of one shape at once, each with strides of its own.
//!
//! Broadcasting, transposition, slicing, tiling and padding are all this: a shape, and for each array taking part a stride
//! per dimension (0 where it repeats, negative where it runs backwards). Dimensions that advance together in every array
//! are merged first, so that the innermost loop is as long as the layouts allow.

use super::value::strides;

/// A shape and the strides of `N` arrays over it, merged.
pub struct Walk<const N: usize> {
    shape: Vec<usize>,
    strides: [Vec<isize>; N],
}

impl<const N: usize> Walk<N> {
    /// Merges the dimensions of `shape` that advance together in all arrays.
    pub fn new(shape: &[usize], arrays: [&[isize]; N]) -> Self {
        let mut merged: Vec<usize> = Vec::new();
        let mut steps: [Vec<isize>; N] = std::array::from_fn(|_| Vec::new());
        for (i, &n) in shape.iter().enumerate() {
            if n == 1 {
                continue;
            }
            if let Some(last) = merged.last_mut() {
                let follows = |a: usize| steps[a].last() == Some(&(arrays[a][i] * n as isize));
                if (0..N).all(follows) {
                    *last *= n;
                    for (s, a) in steps.iter_mut().zip(&arrays) {
                        s.pop();
                        s.push(a[i]);
                    }
                    continue;
                }
            }
            merged.push(n);
            for (s, a) in steps.iter_mut().zip(&arrays) {
                s.push(a[i]);
            }
        }
        if merged.is_empty() {
            merged.push(1);
            steps.iter_mut().for_each(|s| s.push(0));
        }
        Self { shape: merged, strides: steps }
    }

    /// The length of the innermost loop.
    pub fn row(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Each array's stride in the innermost loop.
    pub fn steps(&self) -> [isize; N] {
        std::array::from_fn(|a| self.strides[a][self.shape.len() - 1])
    }

    /// Calls `f` with each array's offset at the start of every innermost loop, in row-major order.
    pub fn rows(&self, start: [isize; N], mut f: impl FnMut([isize; N])) {
        if self.shape.contains(&0) {
            return;
        }
        let outer = self.shape.len() - 1;
        let mut index = vec![0usize; outer];
        let mut at = start;
        loop {
            f(at);
            let mut d = outer;
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                index[d] += 1;
                if index[d] < self.shape[d] {
                    for (at, s) in at.iter_mut().zip(&self.strides) {
                        *at += s[d];
                    }
                    break;
                }
                for (at, s) in at.iter_mut().zip(&self.strides) {
                    *at -= s[d] * (index[d] as isize - 1);
                }
                index[d] = 0;
            }
        }
    }
}

/// Row-major strides, signed.
pub fn dense(shape: &[usize]) -> Vec<isize> {
    strides(shape).into_iter().map(|s| s as isize).collect()
}

/// The strides with which an array of shape `from` is read under the broadcast shape `to` (aligned at the right).
pub fn broadcast(from: &[usize], to: &[usize]) -> Vec<isize> {
    let own = dense(from);
    let lead = to.len() - from.len();
    (0..to.len()).map(|i| if i < lead || from[i - lead] == 1 { 0 } else { own[i - lead] }).collect()
}

/// Copies elements between two arrays of strides, over `shape`.
pub fn copy<T: Copy>(
    shape: &[usize],
    (from, from_start, from_strides): (&[T], isize, &[isize]),
    (to, to_start, to_strides): (&mut [T], isize, &[isize]),
) {
    let walk = Walk::new(shape, [from_strides, to_strides]);
    let n = walk.row();
    let steps = walk.steps();
    walk.rows([from_start, to_start], |[f, t]| match steps {
        [1, 1] => to[t as usize..t as usize + n].copy_from_slice(&from[f as usize..f as usize + n]),
        [0, 1] => to[t as usize..t as usize + n].fill(from[f as usize]),
        [sf, st] => {
            for i in 0..n as isize {
                to[(t + i * st) as usize] = from[(f + i * sf) as usize];
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_what_advances_together() {
        let shape = [1, 3, 8, 64];
        let walk = Walk::new(&shape, [&dense(&shape), &broadcast(&[1, 1, 8, 1], &shape)]);
        assert_eq!(walk.shape, [3, 8, 64]);
        let walk = Walk::new(&shape, [&dense(&shape), &dense(&shape)]);
        assert_eq!((walk.row(), walk.steps()), (3 * 8 * 64, [1, 1]));
    }

    #[test]
    fn copies_a_transposition() {
        let from: Vec<i32> = (0..6).collect();
        let mut to = vec![0; 6];
        copy(&[3, 2], (&from, 0, &[1, 3]), (&mut to, 0, &dense(&[3, 2])));
        assert_eq!(to, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn copies_backwards_and_nothing() {
        let from = [1, 2, 3, 4];
        let mut to = [0; 2];
        copy(&[2], (&from, 3, &[-2]), (&mut to, 0, &[1]));
        assert_eq!(to, [4, 2]);
        copy(&[2, 0], (&from, 0, &[1, 1]), (&mut to, 0, &[1, 1]));
        assert_eq!(to, [4, 2]);
    }
}
