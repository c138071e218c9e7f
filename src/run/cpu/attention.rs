//! Attention and its gradients: some rows of scores at a time, never all of them.

use super::gemm::{elements, matrix, multiply};
use super::real::Real;
use crate::format::Format;
use crate::ir::{AttentionPart, ReduceKind};
use crate::lower::{Attention, Program, Strided};
use crate::run::Bytes;
use ndarray::{ArrayView2, LinalgScalar};
use rayon::prelude::*;

/// Rows of scores that are in memory at once; fixed, so that results do not depend on the number of threads.
const ROWS: usize = 64;

/// The result, row-major.
pub fn product<T: Real + LinalgScalar>(a: &Attention, program: &Program, memory: &[Bytes]) -> Vec<T> {
    let mut out = vec![T::default(); a.result().iter().product()];
    if out.is_empty() || a.keys == 0 || a.queries == 0 {
        if a.part == AttentionPart::Lse {
            out.fill(T::of(f64::NEG_INFINITY));
        }
        return out;
    }
    let operands: Vec<Vec<T>> = (0..a.operands.len()).map(|i| gathered(a, i, program, memory)).collect();
    let whole = Whole { a, operands: &operands };
    // A head of keys is one task, with all query heads that share it: they add to the same gradients.
    let heads = a.batch * a.groups;
    out.par_chunks_mut(whole.size() / heads).enumerate().for_each(|(i, out)| {
        whole.head(i / a.groups, i % a.groups, out);
    });
    out
}

/// An operand's elements, row-major, a mask broadcast to no more than it is; rounded to what is multiplied.
fn gathered<T: Real>(a: &Attention, operand: usize, program: &Program, memory: &[Bytes]) -> Vec<T> {
    let Strided { at, dims, strides } = &a.operands[operand];
    let reach: usize = dims.iter().zip(strides).map(|(&d, &s)| d.saturating_sub(1) * s).sum::<usize>() + 1;
    let values = elements::<T>(*at, reach, program, memory);
    let mut out = Vec::with_capacity(dims.iter().product());
    let mut index = vec![0; dims.len()];
    for _ in 0..dims.iter().product() {
        out.push(values[index.iter().zip(strides).map(|(i, s)| i * s).sum::<usize>()]);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    // Row statistics and the mask are never operands of the matrix units.
    let multiplied = operand < a.part.operands().min(4);
    let held = program.buffers[at.buffer].ty.format;
    if multiplied && a.format.is_low() && a.format != held || multiplied && a.format == Format::Tf32 {
        round(a.format, &mut out);
    }
    out
}

fn round<T: Real>(format: Format, values: &mut [T]) {
    if format.is_low() || format == Format::Tf32 {
        values.iter_mut().for_each(|v| *v = T::of(format.stored(v.get())));
    }
}

struct Whole<'a, T> {
    a: &'a Attention,
    operands: &'a [Vec<T>],
}

impl<T: Real + LinalgScalar> Whole<'_, T> {
    fn size(&self) -> usize {
        self.a.result().iter().product()
    }

    /// One head of an operand, `rows × width`.
    fn of(&self, operand: usize, head: usize, rows: usize, width: usize) -> &[T] {
        &self.operands[operand][head * rows * width..][..rows * width]
    }

    /// What belongs to one head of keys of one batch element.
    fn head(&self, b: usize, g: usize, out: &mut [T]) {
        let a = self.a;
        let share = a.heads / a.groups;
        for (n, h) in (g * share..(g + 1) * share).enumerate() {
            let own = match a.part {
                AttentionPart::GradK | AttentionPart::GradV => &mut *out,
                _ => {
                    let size = out.len() / share;
                    &mut out[n * size..][..size]
                }
            };
            for first in (0..a.queries).step_by(ROWS) {
                self.rows(b, h, g, first..(first + ROWS).min(a.queries), own);
            }
        }
        if matches!(a.part, AttentionPart::GradK) {
            let scale = T::of(a.spec.scale.get());
            out.iter_mut().for_each(|v| *v = *v * scale);
        }
    }

    /// Some queries of a head.
    fn rows(&self, b: usize, h: usize, g: usize, rows: std::ops::Range<usize>, out: &mut [T]) {
        let a = self.a;
        let (query, key) = (b * a.heads + h, b * a.groups + g);
        let n = rows.len();
        let q = &self.of(0, query, a.queries, a.width)[rows.start * a.width..rows.end * a.width];
        let q = matrix(q, n, a.width, false);
        let k = self.of(1, key, a.keys, a.width);
        let mut scores = vec![T::default(); n * a.keys];
        multiply(&q, &matrix(k, a.width, a.keys, true), &mut scores, false);
        self.masked(b, h, rows.start, &mut scores);
        match a.part {
            AttentionPart::Output | AttentionPart::Lse => {
                let statistics: Vec<(f64, f64)> = scores.chunks_mut(a.keys).map(exponentials).collect();
                if a.part == AttentionPart::Lse {
                    for (to, (max, sum)) in out[rows].iter_mut().zip(statistics) {
                        *to = T::of(max + sum.ln());
                    }
                    return;
                }
                round(a.format, &mut scores);
                let out = &mut out[rows.start * a.value_width..rows.end * a.value_width];
                let v = matrix(self.of(2, key, a.keys, a.value_width), a.keys, a.value_width, false);
                multiply(&matrix(&scores, n, a.keys, false), &v, out, false);
                for (row, (_, sum)) in out.chunks_mut(a.value_width).zip(statistics) {
                    let share = T::of(if sum == 0.0 { 0.0 } else { 1.0 / sum });
                    row.iter_mut().for_each(|v| *v = *v * share);
                }
            }
            _ => self.gradient(query, key, rows, q, &mut scores, out),
        }
    }

    /// A gradient's part of some queries, whose masked scores are given.
    fn gradient(
        &self,
        query: usize,
        key: usize,
        rows: std::ops::Range<usize>,
        q: ArrayView2<T>,
        scores: &mut [T],
        out: &mut [T],
    ) {
        let (a, n) = (self.a, rows.len());
        let lse = &self.of(4, query, a.queries, 1)[rows.clone()];
        let delta = &self.of(5, query, a.queries, 1)[rows.clone()];
        let d = &self.of(3, query, a.queries, a.value_width)[rows.start * a.value_width..rows.end * a.value_width];
        let d = matrix(d, n, a.value_width, false);
        for (row, lse) in scores.chunks_mut(a.keys).zip(lse) {
            let lse = lse.get();
            row.iter_mut().for_each(|s| {
                *s = T::of(if lse == f64::NEG_INFINITY { 0.0 } else { (s.get() - lse).exp() });
            });
        }
        if a.part == AttentionPart::GradV {
            round(a.format, scores);
            return add(&matrix(scores, a.keys, n, true), &d, out);
        }
        let v = matrix(self.of(2, key, a.keys, a.value_width), a.value_width, a.keys, true);
        let mut moved = vec![T::default(); n * a.keys];
        multiply(&d, &v, &mut moved, false);
        for ((p, dp), delta) in scores.chunks_mut(a.keys).zip(moved.chunks(a.keys)).zip(delta) {
            p.iter_mut().zip(dp).for_each(|(p, dp)| *p = *p * (*dp - *delta));
        }
        round(a.format, scores);
        if a.part == AttentionPart::GradK {
            return add(&matrix(scores, a.keys, n, true), &q, out);
        }
        let out = &mut out[rows.start * a.width..rows.end * a.width];
        let k = matrix(self.of(1, key, a.keys, a.width), a.keys, a.width, false);
        multiply(&matrix(scores, n, a.keys, false), &k, out, false);
        let scale = T::of(a.spec.scale.get());
        out.iter_mut().for_each(|v| *v = *v * scale);
    }

    /// Scales scores, and hides what a query does not see.
    fn masked(&self, b: usize, h: usize, first: usize, scores: &mut [T]) {
        let a = self.a;
        let scale = T::of(a.spec.scale.get());
        let mask = a.mask().map(|m| (&self.operands[a.part.operands()], &m.dims));
        for (i, row) in scores.chunks_mut(a.keys).enumerate() {
            let i = first + i;
            for (j, s) in row.iter_mut().enumerate() {
                *s = *s * scale;
                if let Some((values, dims)) = mask {
                    let at = [b, h, i, j].iter().zip(dims).fold(0, |at, (&i, &d)| at * d + if d == 1 { 0 } else { i });
                    *s = *s + values[at];
                }
                if a.spec.causal && j > i {
                    *s = T::of(f64::NEG_INFINITY);
                }
            }
        }
    }
}

/// A row of scores as its exponentials, with the largest subtracted: that, and their sum.
fn exponentials<T: Real>(row: &mut [T]) -> (f64, f64) {
    let max = row.iter().fold(T::of(f64::NEG_INFINITY), |max, &s| T::combine(ReduceKind::Max, max, s)).get();
    let mut sum = 0.0;
    for s in row.iter_mut() {
        let e = if max == f64::NEG_INFINITY { 0.0 } else { (s.get() - max).exp() };
        *s = T::of(e);
        sum += s.get();
    }
    (max, sum)
}

/// c += a·b, `c` row-major.
fn add<T: Real + LinalgScalar>(a: &ArrayView2<T>, b: &ArrayView2<T>, c: &mut [T]) {
    let mut part = vec![T::default(); c.len()];
    multiply(a, b, &mut part, false);
    c.iter_mut().zip(part).for_each(|(c, p)| *c = *c + p);
}
