//! Convolution in one to three spatial dimensions.
//!
//! The patch of the input under each output position is laid out as a row, in the order of the weight's rows; the result
//! is rows times rows. For a 1x1 kernel over one position, which is how a language model spends its time, the
//! patch is the input itself.

use std::borrow::Cow;
use std::ops::Range;

use crate::portable::Fault;
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::loops::{Rows, row_by_rows};
use crate::portable::threads;
use crate::portable::value::{Value, elements};

/// The kernel of a convolution.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "conv" => conv,
        _ => return None,
    })
}

/// How many floats of patches are laid out at a time.
const PATCHES: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Valid,
    Custom,
    Same,
    SameLower,
}

/// One spatial dimension.
#[derive(Clone, Copy)]
struct Axis {
    input: usize,
    kernel: usize,
    output: usize,
    stride: usize,
    dilation: usize,
    before: usize,
}

impl Axis {
    /// A dimension that is not there.
    const NONE: Self = Self { input: 1, kernel: 1, output: 1, stride: 1, dilation: 1, before: 0 };

    fn new(
        input: usize,
        kernel: usize,
        stride: usize,
        dilation: usize,
        padding: Padding,
        custom: (usize, usize),
    ) -> Result<Self, Fault> {
        let reach = (kernel.max(1) - 1).checked_mul(dilation).and_then(|r| r.checked_add(1));
        let Some(reach) = reach else { return Err(Fault::new("the dilated kernel is too large")) };
        let (before, output) = match padding {
            Padding::Same | Padding::SameLower => {
                let output = input.div_ceil(stride);
                let total = (output.max(1) - 1).saturating_mul(stride).saturating_add(reach).saturating_sub(input);
                (if padding == Padding::Same { total / 2 } else { total.div_ceil(2) }, output)
            }
            _ => {
                let (before, after) = if padding == Padding::Custom { custom } else { (0, 0) };
                let padded = input.saturating_add(before).saturating_add(after);
                match padded.checked_sub(reach) {
                    Some(room) => (before, room / stride + 1),
                    None => {
                        return Err(Fault::new(format!("a kernel of reach {reach} does not fit {padded} elements")));
                    }
                }
            }
        };
        Ok(Self { input, kernel, output, stride, dilation, before })
    }

    /// Where a tap of the kernel reads for an output position, if that is inside the input.
    fn source(&self, output: usize, tap: usize) -> Option<usize> {
        (output * self.stride + tap * self.dilation).checked_sub(self.before).filter(|&i| i < self.input)
    }

    fn is_trivial(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before == 0 && self.output == self.input
    }
}

/// Lays out the patches of `channels` channels under the output positions of `range`, one row each.
fn patches(x: &[f32], channels: usize, axes: &[Axis; 3], range: Range<usize>, out: &mut [f32]) {
    let [d, h, w] = axes;
    let plane = d.input * h.input * w.input;
    let taps = d.kernel * h.kernel * w.kernel;
    if axes.iter().all(Axis::is_trivial) {
        for (c, x) in x.chunks_exact(plane.max(1)).take(channels).enumerate() {
            for (row, &v) in out.chunks_exact_mut(channels).zip(&x[range.clone()]) {
                row[c] = v;
            }
        }
        return;
    }
    for (row, p) in out.chunks_exact_mut((channels * taps).max(1)).zip(range) {
        let at = [p / (h.output * w.output), p / w.output % h.output, p % w.output];
        let mut cells = row.iter_mut();
        for c in 0..channels {
            for kd in 0..d.kernel {
                for kh in 0..h.kernel {
                    let line = d.source(at[0], kd).zip(h.source(at[1], kh));
                    for kw in 0..w.kernel {
                        let source = line.zip(w.source(at[2], kw));
                        let value =
                            source.map_or(0.0, |((id, ih), iw)| x[c * plane + (id * h.input + ih) * w.input + iw]);
                        if let Some(cell) = cells.next() {
                            *cell = value;
                        }
                    }
                }
            }
        }
    }
}

fn conv(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (x, weight, bias) = (site.operand("x")?, site.weight("weight")?, site.optional("bias")?);
    let padding = match site.text("pad_type")?.as_str() {
        "valid" => Padding::Valid,
        "custom" => Padding::Custom,
        "same" => Padding::Same,
        "same_lower" => Padding::SameLower,
        other => return Err(Fault::new(format!("pad_type `{other}` is not supported"))),
    };
    let mut positive = |name: &str| -> Result<Vec<usize>, Fault> {
        let v = site.ints(name)?.unwrap_or_default();
        v.iter()
            .map(|&v| usize::try_from(v).ok().filter(|&v| v > 0 || name == "pad"))
            .collect::<Option<_>>()
            .ok_or_else(|| Fault::new(format!("{name} {v:?} is out of range")))
    };
    let (strides, dilations, pads, groups) =
        (positive("strides")?, positive("dilations")?, positive("pad")?, positive("groups")?);
    let [groups] = groups[..] else { return Err(Fault::new("groups must be one number")) };
    Kernel::computes(move |args, context| {
        let (x, weight, bias) = (args.get(x), args.get(weight), bias.map(|b| args.get(b)));
        let spatial = x.shape.len().saturating_sub(2);
        let fits = (1..=3).contains(&spatial)
            && weight.shape.len() == x.shape.len()
            && strides.len() == spatial
            && dilations.len() == spatial
            && (padding != Padding::Custom || pads.len() == 2 * spatial)
            && x.dtype == weight.dtype
            && weight.shape[1].checked_mul(groups) == Some(x.shape[1])
            && weight.shape[0].is_multiple_of(groups)
            && bias.is_none_or(|b| b.len() == weight.shape[0]);
        if !fits {
            return Err(Fault::new(format!("`x` {:?}, weight {:?} and parameters do not fit", x.shape, weight.shape)));
        }
        let mut axes = [Axis::NONE; 3];
        for i in 0..spatial {
            let pad = if padding == Padding::Custom { (pads[2 * i], pads[2 * i + 1]) } else { (0, 0) };
            axes[3 - spatial + i] =
                Axis::new(x.shape[2 + i], weight.shape[2 + i], strides[i], dilations[i], padding, pad)?;
        }
        let (batch, channels, outputs) = (x.shape[0], weight.shape[1], weight.shape[0] / groups);
        let positions = elements(&axes.map(|a| a.output))?;
        let plane: usize = axes.iter().map(|a| a.input).product();
        let k = channels * axes.iter().map(|a| a.kernel).product::<usize>();
        let mut shape = vec![batch, weight.shape[0]];
        shape.extend(axes[3 - spatial..].iter().map(|a| a.output));

        let rows = Rows::of(weight)?;
        let bias = bias.map(|b| b.f32s()).transpose()?;
        let from = x.f32s()?;
        let mut out = context.take_shape::<f32>(&shape)?;
        let tile = (PATCHES / k.max(1)).clamp(4, positions.max(4));
        let direct = positions == 1 && axes.iter().all(Axis::is_trivial);
        let threads = context.threads();
        for part in 0..batch * groups {
            let x = &from[part * channels * plane..(part + 1) * channels * plane];
            let out = &mut out[part * outputs * positions..(part + 1) * outputs * positions];
            let group = part % groups;
            for first in (0..positions).step_by(tile) {
                let range = first..(first + tile).min(positions);
                let laid = if direct {
                    Cow::Borrowed(x)
                } else {
                    let mut laid = context.take::<f32>(range.len() * k)?;
                    patches(x, channels, &axes, range.clone(), &mut laid);
                    Cow::Owned(laid)
                };
                let work = outputs.saturating_mul(range.len()).saturating_mul(k);
                threads::split(out, positions, work, threads, |first, out| {
                    let mut scratch = Vec::new();
                    for (i, out) in out.chunks_exact_mut(positions).enumerate() {
                        let o = group * outputs + first + i;
                        let out = &mut out[range.clone()];
                        row_by_rows(rows.get(o * k, k, &mut scratch), &laid, out);
                        if let Some(bias) = bias {
                            out.iter_mut().for_each(|v| *v += bias[o]);
                        }
                    }
                });
                if let Cow::Owned(laid) = laid {
                    context.give(laid);
                }
            }
        }
        Ok(vec![Value::floats(x.dtype, &shape, out)])
    })
}
