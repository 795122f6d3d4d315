//! Ops that compute every element on its own: unary functions, broadcasting arithmetic, comparisons, logic, `select`, `cast`.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use anemone_mil::ir::Dtype;

use crate::portable::Fault;
use crate::portable::context::{Context, Element};
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::strided::{Walk, broadcast, copy, dense};
use crate::portable::value::{Elements, Value, axis_of, wrap};

/// The kernel of an elementwise op.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "identity" => |s| {
            let x = s.operand("x")?;
            Kernel::moves(move |args, _| Ok(vec![args.take(x)]))
        },
        "silu" => |s| unary(s, |x| x * sigmoid(x)),
        "sigmoid" => |s| unary(s, sigmoid),
        "tanh" => |s| unary(s, f32::tanh),
        "relu" => |s| unary(s, |x| if x < 0.0 { 0.0 } else { x }),
        "relu6" => |s| unary(s, |x| x.clamp(0.0, 6.0)),
        "exp" => |s| unary(s, f32::exp),
        "exp2" => |s| unary_any(s, f32::exp2, |x| f64::from(x).exp2() as i32),
        "sqrt" => |s| unary(s, f32::sqrt),
        "sin" => |s| unary(s, f32::sin),
        "cos" => |s| unary(s, f32::cos),
        "tan" => |s| unary(s, f32::tan),
        "asin" => |s| unary(s, f32::asin),
        "acos" => |s| unary(s, f32::acos),
        "atan" => |s| unary(s, f32::atan),
        "sinh" => |s| unary(s, f32::sinh),
        "cosh" => |s| unary(s, f32::cosh),
        "atanh" => |s| unary(s, f32::atanh),
        "erf" => |s| unary(s, |x| libm::erf(x.into()) as f32),
        "ceil" => |s| unary(s, f32::ceil),
        "floor" => |s| unary(s, f32::floor),
        "round" => |s| unary(s, f32::round_ties_even),
        "softsign" => |s| unary(s, |x| x / (1.0 + x.abs())),
        "softplus" => |s| unary(s, |x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        "abs" => |s| unary_any(s, f32::abs, i32::wrapping_abs),
        "square" => |s| unary_any(s, |x| x * x, |x| x.wrapping_mul(x)),
        "sign" => |s| {
            unary_any(
                s,
                |x| {
                    if x > 0.0 {
                        1.0
                    } else if x < 0.0 {
                        -1.0
                    } else {
                        x
                    }
                },
                i32::signum,
            )
        },
        "rsqrt" => |s| unary_epsilon(s, |x, eps| 1.0 / (x + eps).sqrt()),
        "log" => |s| unary_epsilon(s, |x, eps| (x + eps).ln()),
        "inverse" => |s| unary_epsilon(s, |x, eps| 1.0 / (x + eps)),
        "leaky_relu" => |s| unary_alpha(s, |x, a| if x < 0.0 { a * x } else { x }),
        "elu" => |s| unary_alpha(s, |x, a| if x < 0.0 { a * x.exp_m1() } else { x }),
        "threshold" => threshold,
        "thresholded_relu" => |s| unary_alpha(s, |x, a| if x >= a { x } else { 0.0 }),
        "scaled_tanh" => |s| unary_alpha_beta(s, |x, a, b| a * (b * x).tanh()),
        "sigmoid_hard" => |s| unary_alpha_beta(s, |x, a, b| (a * x + b).clamp(0.0, 1.0)),
        "linear_activation" => |s| unary_alpha_beta(s, |x, a, b| a * x + b),
        "clip" => |s| {
            unary_alpha_beta(s, |x, low, high| {
                if x < low {
                    low
                } else if x > high {
                    high
                } else {
                    x
                }
            })
        },
        "clamped_relu" => |s| unary_alpha_beta(s, |x, a, b| if x < 0.0 { a * x } else { x }.min(b)),
        "gelu" => gelu,
        "logical_not" => |s| {
            let x = s.operand("x")?;
            Kernel::moves(move |args, context| Ok(vec![map::<i32>(context, args.take(x), |v| i32::from(v == 0))?]))
        },
        "add" => |s| binary(s, |a, b| a + b, i32::wrapping_add),
        "sub" => |s| binary(s, |a, b| a - b, i32::wrapping_sub),
        "mul" => |s| binary(s, |a, b| a * b, i32::wrapping_mul),
        "real_div" => |s| binary(s, |a, b| a / b, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
        "floor_div" => |s| binary(s, |a, b| ((a - modulo(a, b)) / b).round(), floor_div),
        "mod" => |s| binary(s, modulo, |a, b| a.wrapping_sub(floor_div(a, b).wrapping_mul(b))),
        "maximum" => |s| binary(s, |a, b| if a > b || a.is_nan() { a } else { b }, i32::max),
        "minimum" => |s| binary(s, |a, b| if a < b || a.is_nan() { a } else { b }, i32::min),
        "pow" => |s| binary(s, power, |a, b| f64::from(a).powf(f64::from(b)) as i32),
        "greater" => |s| compare(s, |a, b| a > b, |a, b| a > b),
        "greater_equal" => |s| compare(s, |a, b| a >= b, |a, b| a >= b),
        "less" => |s| compare(s, |a, b| a < b, |a, b| a < b),
        "less_equal" => |s| compare(s, |a, b| a <= b, |a, b| a <= b),
        "equal" => |s| compare(s, |a, b| a == b, |a, b| a == b),
        "not_equal" => |s| compare(s, |a, b| a != b, |a, b| a != b),
        "logical_and" => |s| compare(s, |_, _| false, |a, b| a & b != 0),
        "logical_or" => |s| compare(s, |_, _| false, |a, b| a | b != 0),
        "logical_xor" => |s| compare(s, |_, _| false, |a, b| a ^ b != 0),
        "select" => select,
        "cast" => cast,
        "quantize" => quantize,
        "dequantize" => dequantize,
        _ => return None,
    })
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x` to the power `y`. The square, which every RMS norm takes, is one product: what a correctly rounded `powf` gives.
fn power(x: f32, y: f32) -> f32 {
    if y == 2.0 { x * x } else { x.powf(y) }
}

/// The remainder that has the divisor's sign.
fn modulo(a: f32, b: f32) -> f32 {
    let r = a % b;
    if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
}

/// Integer division towards minus infinity; by zero, 0 (there is no value to mean, and a masked-out lane may well do it).
fn floor_div(a: i32, b: i32) -> i32 {
    if b == 0 {
        return 0;
    }
    let q = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

/// Applies `f` to every element, in place where nobody else sees them.
fn map<T: Element>(context: &mut Context<'_>, mut x: Value, f: impl Fn(T) -> T) -> Result<Value, Fault> {
    if let Some(v) = T::buf(&mut x).and_then(|b| b.unique()) {
        v.iter_mut().for_each(|v| *v = f(*v));
        return Ok(x);
    }
    let from = T::of(&x)?;
    let mut out = context.take::<T>(from.len())?;
    for (o, &v) in out.iter_mut().zip(from) {
        *o = f(v);
    }
    Ok(Value { data: T::wrap(out), ..x })
}

fn unary(site: &mut Site<'_>, f: impl Fn(f32) -> f32 + Send + Sync + 'static) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    Kernel::computes(move |args, context| Ok(vec![map(context, args.take(x), &f)?]))
}

fn unary_any(
    site: &mut Site<'_>,
    f: impl Fn(f32) -> f32 + Send + Sync + 'static,
    i: impl Fn(i32) -> i32 + Send + Sync + 'static,
) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    Kernel::computes(move |args, context| {
        let x = args.take(x);
        let dtype = x.dtype;
        Ok(vec![match x.data {
            Elements::Ints(_) => map(context, x, |v| wrap(dtype, i(v)))?,
            _ => map(context, x, &f)?,
        }])
    })
}

fn unary_epsilon(site: &mut Site<'_>, f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static) -> Result<Kernel, Fault> {
    let epsilon = site.float("epsilon")?;
    unary(site, move |x| f(x, epsilon))
}

fn unary_alpha(site: &mut Site<'_>, f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static) -> Result<Kernel, Fault> {
    let alpha = site.float("alpha")?;
    unary(site, move |x| f(x, alpha))
}

fn unary_alpha_beta(
    site: &mut Site<'_>,
    f: impl Fn(f32, f32, f32) -> f32 + Send + Sync + 'static,
) -> Result<Kernel, Fault> {
    let (alpha, beta) = (site.float("alpha")?, site.float("beta")?);
    unary(site, move |x| f(x, alpha, beta))
}

/// `max(x, alpha)`, of floats or integers.
fn threshold(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, alpha) = (site.operand("x")?, site.operand("alpha")?);
    Kernel::moves(move |args, context| {
        let (x, alpha) = (args.take(x), args.take(alpha));
        same_types(&x, &alpha)?;
        Ok(vec![match x.data {
            Elements::Ints(_) => combine::<i32>(context, x, alpha, i32::max)?,
            _ => combine::<f32>(context, x, alpha, |a, b| if a < b { b } else { a })?,
        }])
    })
}

/// The Gaussian error linear unit: exact, or by either of its usual approximations (Hendrycks and Gimpel, arXiv 1606.08415).
/// 1 + erf z is taken as erfc -z and 1 + tanh u as 2 / (1 + e^-2u), which lose nothing in the lower tail.
fn gelu(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let f: fn(f64) -> f64 = match site.text("mode")?.as_str() {
        "EXACT" => |x| 0.5 * x * libm::erfc(-x * FRAC_1_SQRT_2),
        "TANH_APPROXIMATION" => |x| x / (1.0 + (-2.0 * (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).exp()),
        "SIGMOID_APPROXIMATION" => |x| x / (1.0 + (-1.702 * x).exp()),
        other => return Err(Fault::new(format!("mode `{other}` is not supported"))),
    };
    unary(site, move |x| f(x.into()) as f32)
}

/// The shape two operands broadcast to.
pub fn broadcast_shape(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Fault> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (1, n) | (n, 1) => Ok(n),
            (m, n) if m == n => Ok(m),
            _ => Err(Fault::new(format!("shapes {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// `out[i] = f(a[i], b[i])` over the broadcast shape.
fn zip<T: Copy, R>(
    shape: &[usize],
    (a, a_shape): (&[T], &[usize]),
    (b, b_shape): (&[T], &[usize]),
    out: &mut [R],
    f: impl Fn(T, T) -> R,
) {
    let walk = Walk::new(shape, [&broadcast(a_shape, shape), &broadcast(b_shape, shape), &dense(shape)]);
    let n = walk.row();
    let [sa, sb, _] = walk.steps();
    walk.rows([0; 3], |[pa, pb, po]| {
        let out = &mut out[po as usize..po as usize + n];
        let (a, b) = (&a[pa as usize..], &b[pb as usize..]);
        match (sa, sb) {
            (0, 0) => out.iter_mut().for_each(|o| *o = f(a[0], b[0])),
            (0, _) => out.iter_mut().zip(b).for_each(|(o, &b)| *o = f(a[0], b)),
            (_, 0) => out.iter_mut().zip(a).for_each(|(o, &a)| *o = f(a, b[0])),
            _ => out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (&a, &b))| *o = f(a, b)),
        }
    });
}

/// `out[i] = f(out[i], b[i])`, `b` broadcast to the shape of `out`.
fn update<T: Copy>(shape: &[usize], out: &mut [T], (b, b_shape): (&[T], &[usize]), f: impl Fn(T, T) -> T) {
    let walk = Walk::new(shape, [&dense(shape), &broadcast(b_shape, shape)]);
    let n = walk.row();
    let [_, sb] = walk.steps();
    walk.rows([0; 2], |[po, pb]| {
        let out = &mut out[po as usize..po as usize + n];
        let b = &b[pb as usize..];
        match sb {
            0 => out.iter_mut().for_each(|o| *o = f(*o, b[0])),
            _ => out.iter_mut().zip(b).for_each(|(o, &b)| *o = f(*o, b)),
        }
    });
}

/// Combines two values, in the memory of one of them where that is free.
fn combine<T: Element>(
    context: &mut Context<'_>,
    mut a: Value,
    mut b: Value,
    f: impl Fn(T, T) -> T,
) -> Result<Value, Fault> {
    let shape = broadcast_shape(&a.shape, &b.shape)?;
    if a.shape == shape
        && let Some(out) = T::buf(&mut a).and_then(|v| v.unique())
    {
        update(&shape, out, (T::of(&b)?, &b.shape), f);
        context.recycle(b);
        return Ok(a);
    }
    if b.shape == shape
        && let Some(out) = T::buf(&mut b).and_then(|v| v.unique())
    {
        update(&shape, out, (T::of(&a)?, &a.shape), |b, a| f(a, b));
        context.recycle(a);
        return Ok(b);
    }
    let mut out = context.take_shape::<T>(&shape)?;
    zip(&shape, (T::of(&a)?, &a.shape), (T::of(&b)?, &b.shape), &mut out, f);
    let dtype = a.dtype;
    context.recycle(a);
    context.recycle(b);
    Ok(Value { dtype, shape, data: T::wrap(out) })
}

fn same_types(a: &Value, b: &Value) -> Result<(), Fault> {
    if a.dtype != b.dtype {
        return Err(Fault::new(format!("operands of different types, {} and {}", a.dtype, b.dtype)));
    }
    Ok(())
}

fn binary(
    site: &mut Site<'_>,
    f: impl Fn(f32, f32) -> f32 + Send + Sync + 'static,
    i: impl Fn(i32, i32) -> i32 + Send + Sync + 'static,
) -> Result<Kernel, Fault> {
    let (x, y) = (site.operand("x")?, site.operand("y")?);
    Kernel::computes(move |args, context| {
        let (x, y) = (args.take(x), args.take(y));
        same_types(&x, &y)?;
        let dtype = x.dtype;
        Ok(vec![match x.data {
            Elements::Ints(_) => combine::<i32>(context, x, y, |a, b| wrap(dtype, i(a, b)))?,
            _ => combine::<f32>(context, x, y, &f)?,
        }])
    })
}

fn compare(
    site: &mut Site<'_>,
    f: impl Fn(f32, f32) -> bool + Send + Sync + 'static,
    i: impl Fn(i32, i32) -> bool + Send + Sync + 'static,
) -> Result<Kernel, Fault> {
    let (x, y) = (site.operand("x")?, site.operand("y")?);
    Kernel::moves(move |args, context| {
        let (x, y) = (args.get(x), args.get(y));
        same_types(x, y)?;
        let shape = broadcast_shape(&x.shape, &y.shape)?;
        let mut out = context.take_shape::<i32>(&shape)?;
        match x.data {
            Elements::Ints(_) => {
                zip(&shape, (x.i32s()?, &x.shape), (y.i32s()?, &y.shape), &mut out, |a, b| i32::from(i(a, b)));
            }
            _ => zip(&shape, (x.f32s()?, &x.shape), (y.f32s()?, &y.shape), &mut out, |a, b| i32::from(f(a, b))),
        }
        Ok(vec![Value::ints(Dtype::Bool, &shape, out)])
    })
}

fn select(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (cond, a, b) = (site.operand("cond")?, site.operand("a")?, site.operand("b")?);
    fn of<T: Element>(context: &mut Context<'_>, cond: &Value, a: &Value, b: &Value) -> Result<Value, Fault> {
        let shape = broadcast_shape(&broadcast_shape(&cond.shape, &a.shape)?, &b.shape)?;
        let mut out = context.take_shape::<T>(&shape)?;
        copy(&shape, (T::of(b)?, 0, &broadcast(&b.shape, &shape)), (&mut out, 0, &dense(&shape)));
        let (cond, from) = ((cond.i32s()?, &cond.shape), (T::of(a)?, &a.shape));
        let walk = Walk::new(&shape, [&broadcast(cond.1, &shape), &broadcast(from.1, &shape), &dense(&shape)]);
        let (n, [sc, sa, so]) = (walk.row() as isize, walk.steps());
        walk.rows([0; 3], |[c, f, o]| {
            for i in 0..n {
                if cond.0[(c + i * sc) as usize] != 0 {
                    out[(o + i * so) as usize] = from.0[(f + i * sa) as usize];
                }
            }
        });
        Ok(Value { dtype: a.dtype, shape, data: T::wrap(out) })
    }
    Kernel::moves(move |args, context| {
        let (cond, a, b) = (args.get(cond), args.get(a), args.get(b));
        same_types(a, b)?;
        Ok(vec![match a.data {
            Elements::Ints(_) => of::<i32>(context, cond, a, b)?,
            _ => of::<f32>(context, cond, a, b)?,
        }])
    })
}

/// The type that a `dtype` parameter names.
pub fn dtype_named(name: &str) -> Result<Dtype, Fault> {
    Ok(match name {
        "fp16" => Dtype::F16,
        "fp32" => Dtype::F32,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "int16" => Dtype::I16,
        "uint16" => Dtype::U16,
        "int32" => Dtype::I32,
        "bool" => Dtype::Bool,
        other => return Err(Fault::new(format!("type `{other}` is not supported"))),
    })
}

/// Floats truncate toward zero on their way to integers; anything but zero is true.
fn cast(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let x = site.operand("x")?;
    let to = dtype_named(&site.text("dtype")?)?;
    Kernel::computes(move |args, context| {
        let x = args.take(x);
        let (from_float, to_float) = (x.dtype.is_float(), to.is_float());
        Ok(vec![match (from_float, to_float) {
            (true, true) => Value { dtype: to, ..x },
            (true, false) => {
                let from = x.f32s()?;
                let mut out = context.take::<i32>(from.len())?;
                for (o, &v) in out.iter_mut().zip(from) {
                    *o = if to == Dtype::Bool { i32::from(v != 0.0) } else { wrap(to, v as i32) };
                }
                Value::ints(to, &x.shape, out)
            }
            (false, true) => {
                let from = x.i32s()?;
                let mut out = context.take::<f32>(from.len())?;
                for (o, &v) in out.iter_mut().zip(from) {
                    *o = v as f32;
                }
                Value::floats(to, &x.shape, out)
            }
            (false, false) => Value { dtype: to, ..map(context, x, |v| wrap(to, v))? },
        }])
    })
}

/// The strides with which a per-axis parameter (or a scalar) is read under `shape`.
fn along(parameter: &Value, axis: Option<i32>, shape: &[usize]) -> Result<Vec<isize>, Fault> {
    let mut steps = vec![0; shape.len()];
    if parameter.shape.is_empty() {
        return Ok(steps);
    }
    let axis = axis.ok_or_else(|| Fault::new("a vector of scales needs `axis`"))?;
    let axis = axis_of(axis, shape.len())?;
    if parameter.shape != [shape[axis]] {
        return Err(Fault::new(format!("a scale of shape {:?} for {} channels", parameter.shape, shape[axis])));
    }
    steps[axis] = 1;
    Ok(steps)
}

/// `round(x / scale) + zero_point`, ties to even, clamped to the integer type.
fn quantize(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (input, scale, zero) = (site.operand("input")?, site.operand("scale")?, site.optional("zero_point")?);
    let axis = site.ints("axis")?.and_then(|v| v.first().copied());
    let to = dtype_named(&site.text("output_dtype")?)?;
    let (low, high) = match to {
        Dtype::I8 => (-128.0, 127.0),
        Dtype::U8 => (0.0, 255.0),
        other => return Err(Fault::new(format!("output type {other} is not supported"))),
    };
    Kernel::computes(move |args, context| {
        let (x, scale) = (args.get(input), args.get(scale));
        let zero = zero.map(|z| args.get(z).i32s()).transpose()?;
        if zero.is_some_and(|z| z.len() != scale.len()) {
            return Err(Fault::new("scale and zero_point differ in shape"));
        }
        let mut out = context.take::<i32>(x.len())?;
        let own = dense(&x.shape);
        let walk = Walk::new(&x.shape, [&own, &along(scale, axis, &x.shape)?]);
        let (n, [_, step]) = (walk.row(), walk.steps());
        let (from, scale) = (x.f32s()?, scale.f32s()?);
        walk.rows([0; 2], |[at, s]| {
            for i in 0..n {
                let c = (s + i as isize * step) as usize;
                let q = (from[at as usize + i] / scale[c]).round_ties_even() + zero.map_or(0.0, |z| z[c] as f32);
                out[at as usize + i] = q.clamp(low, high) as i32;
            }
        });
        Ok(vec![Value::ints(to, &x.shape, out)])
    })
}

/// `scale * (q - zero_point)`.
fn dequantize(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (input, scale, zero) = (site.operand("input")?, site.operand("scale")?, site.optional("zero_point")?);
    let axis = site.ints("axis")?.and_then(|v| v.first().copied());
    Kernel::computes(move |args, context| {
        let (x, scale) = (args.get(input), args.get(scale));
        let zero = zero.map(|z| args.get(z).i32s()).transpose()?;
        if zero.is_some_and(|z| z.len() != scale.len()) {
            return Err(Fault::new("scale and zero_point differ in shape"));
        }
        let mut out = context.take::<f32>(x.len())?;
        let own = dense(&x.shape);
        let walk = Walk::new(&x.shape, [&own, &along(scale, axis, &x.shape)?]);
        let (n, [_, step]) = (walk.row(), walk.steps());
        let (from, dtype, scale) = (x.i32s()?, scale.dtype, scale.f32s()?);
        walk.rows([0; 2], |[at, s]| {
            for i in 0..n {
                let c = (s + i as isize * step) as usize;
                out[at as usize + i] = scale[c] * (from[at as usize + i] - zero.map_or(0, |z| z[c])) as f32;
            }
        });
        Ok(vec![Value::floats(dtype, &x.shape, out)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_division_rounds_down() {
        assert_eq!(
            [floor_div(7, 2), floor_div(-7, 2), floor_div(7, -2), floor_div(-6, 2), floor_div(1, 0)],
            [3, -4, -4, -3, 0]
        );
    }
}
