//! Windows: `slice_by_index`, `slice_by_size`, `slice_update`, `split`.
//!
//! A window whose elements lie together in its source, as a split of channels of one token or one head of a cache does,
//! is taken without copying.

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Args, Kernel, Prepare, Site, Slot};
use crate::portable::strided::{copy, dense};
use crate::portable::value::{Elements, Value, axis_of};

use super::shape::by_element;

/// The kernel of a slicing op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "slice_by_index" => slice_by_index,
        "slice_by_size" => slice_by_size,
        "slice_update" => slice_update,
        "split" => split,
        _ => return None,
    })
}

/// Part of an array: for every dimension where it begins, how many elements it has, and how far they are apart.
struct Window {
    begin: Vec<usize>,
    count: Vec<usize>,
    stride: Vec<isize>,
}

impl Window {
    fn start_and_steps(&self, shape: &[usize]) -> (isize, Vec<isize>) {
        let own = dense(shape);
        let start = own.iter().zip(&self.begin).map(|(s, &b)| s * b as isize).sum();
        (start, own.iter().zip(&self.stride).map(|(s, t)| s * t).collect())
    }

    /// Whether the elements lie together, in order: after the first dimension that is cut or has more than one element,
    /// every dimension is whole.
    fn is_contiguous(&self, shape: &[usize]) -> bool {
        let cut = (0..shape.len()).find(|&i| self.count[i] != 1).unwrap_or(shape.len());
        (cut..shape.len()).all(|i| self.stride[i] == 1 && (i == cut || self.count[i] == shape[i]))
    }

    /// The window as a value of its own.
    fn of(&self, context: &mut Context<'_>, x: &Value) -> Result<Value, Fault> {
        fn copied<T: Element>(context: &mut Context<'_>, x: &Value, w: &Window) -> Result<Value, Fault> {
            let (start, steps) = w.start_and_steps(&x.shape);
            let mut out = context.take_shape::<T>(&w.count)?;
            copy(&w.count, (T::of(x)?, start, &steps), (&mut out, 0, &dense(&w.count)));
            Ok(Value { dtype: x.dtype, shape: w.count.clone(), data: T::wrap(out) })
        }
        let n: usize = self.count.iter().product();
        if n > 0 && self.is_contiguous(&x.shape) {
            let (start, _) = self.start_and_steps(&x.shape);
            let range = start as usize..start as usize + n;
            let data = match &x.data {
                Elements::Floats(b) => Elements::Floats(b.window(range)),
                Elements::Ints(b) => Elements::Ints(b.window(range)),
                Elements::Stored(_) => return Err(Fault::new("a stored weight cannot be sliced")),
            };
            return Ok(Value { dtype: x.dtype, shape: self.count.clone(), data });
        }
        by_element!(x, copied(context, x, self))
    }
}

/// The parameters that `slice_by_index` and `slice_update` have in common.
struct Bounds {
    begin: Slot,
    end: Slot,
    stride: Option<Vec<i32>>,
    begin_mask: Option<Vec<i32>>,
    end_mask: Option<Vec<i32>>,
    squeeze_mask: Option<Vec<i32>>,
}

impl Bounds {
    fn of(site: &mut Site<'_>) -> Result<Self, Fault> {
        Ok(Self {
            begin: site.operand("begin")?,
            end: site.operand("end")?,
            stride: site.ints("stride")?,
            begin_mask: site.ints("begin_mask")?,
            end_mask: site.ints("end_mask")?,
            squeeze_mask: site.ints("squeeze_mask")?,
        })
    }

    fn squeezed(&self, d: usize) -> bool {
        self.squeeze_mask.as_ref().is_some_and(|m| m.get(d) == Some(&1))
    }

    /// The window on an array of that shape. Bounds mean what they mean in a Python slice: negative ones count from the
    /// end, and both are clamped to the array.
    fn window(&self, args: &Args, shape: &[usize]) -> Result<Window, Fault> {
        let rank = shape.len();
        let (begin, end) = (args.get(self.begin).i32s()?, args.get(self.end).i32s()?);
        let per_dim = [&self.stride, &self.begin_mask, &self.end_mask, &self.squeeze_mask];
        if begin.len() != rank
            || end.len() != rank
            || per_dim.iter().any(|p| p.as_ref().is_some_and(|p| p.len() != rank))
        {
            return Err(Fault::new(format!("begin {begin:?}, end {end:?} or a mask does not fit shape {shape:?}")));
        }
        let masked = |m: &Option<Vec<i32>>, d: usize| m.as_ref().is_some_and(|m| m[d] != 0);
        let mut window = Window { begin: vec![], count: vec![], stride: vec![] };
        for d in 0..rank {
            let n = shape[d] as i64;
            let stride = self.stride.as_ref().map_or(1, |s| i64::from(s[d]));
            let wrapped = |v: i32| if v < 0 { i64::from(v) + n } else { i64::from(v) };
            let b = wrapped(begin[d]);
            let (first, count, stride) = if self.squeezed(d) {
                let b = if masked(&self.begin_mask, d) { 0 } else { b };
                if !(0..n).contains(&b) {
                    return Err(Fault::new(format!("index {} is out of range for {n} elements", begin[d])));
                }
                (b, 1, 1)
            } else if stride == 0 {
                return Err(Fault::new("a stride of zero"));
            } else {
                let (low, high) = if stride > 0 { (0, n) } else { (-1, n - 1) };
                let b =
                    if masked(&self.begin_mask, d) { if stride > 0 { 0 } else { n - 1 } } else { b.clamp(low, high) };
                let e = if masked(&self.end_mask, d) {
                    if stride > 0 { n } else { -1 }
                } else {
                    wrapped(end[d]).clamp(low, high)
                };
                let span = if stride > 0 { e - b } else { b - e };
                (b, if span <= 0 { 0 } else { (span - 1) / stride.abs() + 1 }, stride)
            };
            window.begin.push(if count == 0 { 0 } else { first as usize });
            window.count.push(count as usize);
            window.stride.push(stride as isize);
        }
        Ok(window)
    }
}

fn slice_by_index(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let bounds = Bounds::of(site)?;
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let mut out = bounds.window(args, &x.shape)?.of(context, x)?;
        let kept = (0..out.shape.len()).filter(|&d| !bounds.squeezed(d)).map(|d| out.shape[d]).collect();
        out.shape = kept;
        Ok(vec![out])
    })
}

fn slice_by_size(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, begin, size) = (site.operand("x")?, site.operand("begin")?, site.operand("size")?);
    Kernel::moves(move |args, context| {
        let (x, begin, size) = (args.get(x), args.get(begin).i32s()?, args.get(size).i32s()?);
        let rank = x.shape.len();
        let bad = || Fault::new(format!("begin {begin:?} and size {size:?} do not fit shape {:?}", x.shape));
        if begin.len() != rank || size.len() != rank {
            return Err(bad());
        }
        let mut window = Window { begin: vec![], count: vec![], stride: vec![1; rank] };
        for d in 0..rank {
            let n = x.shape[d] as i64;
            let b = if begin[d] < 0 { i64::from(begin[d]) + n } else { i64::from(begin[d]) };
            let count = if size[d] == -1 { n - b } else { i64::from(size[d]) };
            if b < 0 || count < 0 || b + count > n {
                return Err(bad());
            }
            window.begin.push(b as usize);
            window.count.push(count as usize);
        }
        Ok(vec![window.of(context, x)?])
    })
}

fn slice_update(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, update) = (site.operand("x")?, site.operand("update")?);
    let bounds = Bounds::of(site)?;
    fn write<T: Element>(context: &mut Context<'_>, mut x: Value, update: &Value, w: &Window) -> Result<Value, Fault> {
        let (start, steps) = w.start_and_steps(&x.shape);
        let from = (T::of(update)?, 0, &dense(&w.count)[..]);
        if let Some(own) = T::buf(&mut x).and_then(|b| b.unique()) {
            copy(&w.count, from, (own, start, &steps));
            return Ok(x);
        }
        let mut out = context.take_shape::<T>(&x.shape)?;
        out.copy_from_slice(T::of(&x)?);
        copy(&w.count, from, (&mut out, start, &steps));
        Ok(Value { data: T::wrap(out), ..x })
    }
    Kernel::moves(move |args, context| {
        let x = args.take(x);
        let update = args.get(update);
        let window = bounds.window(args, &x.shape)?;
        let kept: Vec<usize> = (0..x.shape.len()).filter(|&d| !bounds.squeezed(d)).map(|d| window.count[d]).collect();
        if update.shape != kept || update.dtype != x.dtype {
            return Err(Fault::new(format!(
                "the update is {}{:?}, the slice it replaces {}{kept:?}",
                update.dtype, update.shape, x.dtype
            )));
        }
        Ok(vec![by_element!(x, write(context, x, update, &window))?])
    })
}

fn split(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let axis = site.int("axis")?;
    let parts = site.output_count();
    let count = site.ints("num_splits")?;
    let sizes = site.ints("split_sizes")?;
    if count.as_ref().is_some_and(|c| c[..] != [parts as i32]) || sizes.as_ref().is_some_and(|s| s.len() != parts) {
        return Err(Fault::new(format!("{parts} outputs do not fit num_splits {count:?} and split_sizes {sizes:?}")));
    }
    Kernel::moves(move |args, context| {
        let x = args.get(x);
        let rank = x.shape.len();
        let axis = axis_of(axis, rank)?;
        let n = x.shape[axis];
        let sizes: Vec<usize> = match &sizes {
            Some(s) => s.iter().filter_map(|&s| usize::try_from(s).ok()).collect(),
            None => vec![n / parts; parts],
        };
        if sizes.len() != parts || sizes.iter().try_fold(0usize, |n, &s| n.checked_add(s)) != Some(n) {
            return Err(Fault::new(format!("{n} elements do not split into {parts} parts {sizes:?}")));
        }
        let mut at = 0;
        sizes
            .iter()
            .map(|&size| {
                let mut window = Window { begin: vec![0; rank], count: x.shape.clone(), stride: vec![1; rank] };
                window.begin[axis] = at;
                window.count[axis] = size;
                at += size;
                window.of(context, x)
            })
            .collect()
    })
}
