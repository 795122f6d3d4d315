//! `scaled_dot_product_attention`, the fused op of iOS 18: softmax(q k^T / sqrt(E) + mask) v.

use crate::portable::Fault;
use crate::portable::kernel::{Kernel, Prepare, Site};
use crate::portable::strided::{broadcast, copy, dense};
use crate::portable::value::{Elements, Value};

use super::matmul::{Sizes, times, times_transposed};
use super::normalise::softmax_row;

/// The kernel of attention.
pub fn lookup(kind: &str) -> Option<Prepare> {
    Some(match kind {
        "scaled_dot_product_attention" => attention,
        _ => return None,
    })
}

fn attention(site: &mut Site<'_>) -> Result<Kernel, Fault> {
    let (q, k, v) = (site.operand("query")?, site.operand("key")?, site.operand("value")?);
    let mask = site.optional("attn_mask")?;
    Kernel::computes(move |args, context| {
        let (q, k, v) = (args.get(q), args.get(k), args.get(v));
        let rank = q.shape.len();
        let shapes = || format!("query {:?}, key {:?}, value {:?}", q.shape, k.shape, v.shape);
        if rank < 2 || [k, v].iter().any(|t| t.shape.len() != rank || t.shape[..rank - 2] != q.shape[..rank - 2]) {
            return Err(Fault::new(format!("{}: all but the last two dimensions must be equal", shapes())));
        }
        let [l, e] = [q.shape[rank - 2], q.shape[rank - 1]];
        let [s, ev] = [v.shape[rank - 2], v.shape[rank - 1]];
        if k.shape[rank - 2..] != [s, e] {
            return Err(Fault::new(format!("{}: expected [.., L, E], [.., S, E], [.., S, EV]", shapes())));
        }
        let mut score_shape = q.shape.clone();
        score_shape[rank - 1] = s;
        // What is added to the scores, spread over all of them.
        let added = match mask.map(|m| args.get(m)) {
            None => None,
            Some(mask) if mask.shape.len() > rank => {
                return Err(Fault::new(format!("the mask {:?} does not spread over {score_shape:?}", mask.shape)));
            }
            Some(mask) => {
                let fits = mask.shape.iter().rev().zip(score_shape.iter().rev()).all(|(m, s)| *m == 1 || m == s);
                if !fits {
                    return Err(Fault::new(format!("the mask {:?} does not spread over {score_shape:?}", mask.shape)));
                }
                let values: Vec<f32> = match &mask.data {
                    Elements::Ints(m) => m.iter().map(|&m| if m != 0 { 0.0 } else { f32::NEG_INFINITY }).collect(),
                    _ => mask.f32s()?.to_vec(),
                };
                let mut added = context.take_shape::<f32>(&score_shape)?;
                let from = broadcast(&mask.shape, &score_shape);
                copy(&score_shape, (&values, 0, &from), (&mut added, 0, &dense(&score_shape)));
                Some(added)
            }
        };
        let batch: usize = q.shape[..rank - 2].iter().product();
        let mut shape = q.shape.clone();
        shape[rank - 1] = ev;
        let mut out = context.take_shape::<f32>(&shape)?;
        let mut scores = context.take::<f32>(l * s)?;
        let scale = 1.0 / (e as f32).sqrt();
        let (qs, ks, vs) = (q.f32s()?, k.f32s()?, v.f32s()?);
        for b in 0..batch {
            times_transposed(
                Sizes { m: l, k: e, n: s },
                &qs[b * l * e..],
                &ks[b * s * e..(b + 1) * s * e],
                &mut scores,
            );
            scores.iter_mut().for_each(|v| *v *= scale);
            if let Some(added) = &added {
                scores.iter_mut().zip(&added[b * l * s..]).for_each(|(v, a)| *v += a);
            }
            scores.chunks_exact_mut(s.max(1)).for_each(softmax_row);
            let out = &mut out[b * l * ev..(b + 1) * l * ev];
            times(Sizes { m: l, k: s, n: ev }, &scores, &vs[b * s * ev..], out);
        }
        context.give(scores);
        if let Some(added) = added {
            context.give(added);
        }
        Ok(vec![Value::floats(q.dtype, &shape, out)])
    })
}
