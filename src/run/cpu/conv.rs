//! Convolutions as matrix products over unfolded windows ("im2col"): for each sample and group, the columns
//! `[channels · kernel, places]` hold what every position of the kernel sees.

use super::gemm::{SPLIT, matrix, multiply, operands};
use super::lanes::unflatten;
use super::real::Real;
use crate::ir::ConvKind;
use crate::lower::{Conv, Program};
use crate::run::Bytes;
use ndarray::LinalgScalar;
use rayon::prelude::*;

/// The result, row-major.
pub fn product<T: Real + LinalgScalar>(c: &Conv, program: &Program, memory: &[Bytes]) -> Vec<T> {
    let [a, b] = operands::<T>([c.a, c.b], c.operand_elements(), c.format, program, memory);
    let g = Geometry::new(c);
    match c.kind {
        ConvKind::Forward => forward(&g, &a, &b),
        ConvKind::Input(_) => input(&g, &a, &b),
        ConvKind::Weight(_) => weight(&g, &a, &b),
    }
}

struct Geometry<'a> {
    c: &'a Conv,
    samples: usize,
    groups: usize,
    /// Channels of x and of y in a group.
    channels: usize,
    outputs: usize,
    /// Elements of x's and y's spatial part, and of the kernel.
    area: usize,
    places: usize,
    kernel: usize,
}

impl Geometry<'_> {
    fn new(c: &Conv) -> Geometry<'_> {
        Geometry {
            c,
            samples: c.x[0],
            groups: c.spec.groups,
            channels: c.w[1],
            outputs: c.w[0] / c.spec.groups,
            area: c.x[2..].iter().product(),
            places: c.y[2..].iter().product(),
            kernel: c.w[2..].iter().product(),
        }
    }

    fn rows(&self) -> usize {
        self.channels * self.kernel
    }

    /// Calls `f(row, place, from)` with each stretch of places along the last axis whose window element lies inside x:
    /// `(channel · kernel + k, first place, element of the channel's plane, step, length)`.
    fn stretches(&self, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
        let (s, n) = (&self.c.spec, self.c.spec.stride.len());
        let (x, y, w) = (&self.c.x[2..], &self.c.y[2..], &self.c.w[2..]);
        let last = n - 1;
        let lines: usize = y[..last].iter().product();
        let (mut k, mut o) = (vec![0; n], vec![0; n]);
        for flat_k in 0..self.kernel {
            unflatten(flat_k, w, &mut k);
            for line in 0..lines {
                unflatten(line * y[last], y, &mut o);
                let mut base = 0;
                let inside =
                    (0..last).all(|i| match (o[i] * s.stride[i] + k[i] * s.dilation[i]).checked_sub(s.lo[i]) {
                        Some(p) if p < x[i] => {
                            base = base * x[i] + p;
                            true
                        }
                        _ => false,
                    });
                if !inside {
                    continue;
                }
                // p = o·stride + shift − lo lies in 0 .. extent for o in from .. to.
                let shift = k[last] * s.dilation[last];
                let from = s.lo[last].saturating_sub(shift).div_ceil(s.stride[last]);
                let to = (x[last] + s.lo[last]).saturating_sub(shift).div_ceil(s.stride[last]).min(y[last]);
                if from < to {
                    let at = base * x[last] + from * s.stride[last] + shift - s.lo[last];
                    for channel in 0..self.channels {
                        let row = channel * self.kernel + flat_k;
                        f(row, line * y[last] + from, channel * self.area + at, s.stride[last], to - from);
                    }
                }
            }
        }
    }

    /// The windows of one sample's group of channels, as columns.
    fn unfold<T: Real>(&self, x: &[T], columns: &mut [T]) {
        columns.fill(T::default());
        self.stretches(|row, place, from, step, len| {
            let to = &mut columns[row * self.places + place..][..len];
            if step == 1 {
                to.copy_from_slice(&x[from..from + len]);
            } else {
                to.iter_mut().enumerate().for_each(|(i, v)| *v = x[from + i * step]);
            }
        });
    }

    /// The transpose of [`Geometry::unfold`]: columns added back to where they came from.
    fn fold<T: Real + LinalgScalar>(&self, columns: &[T], x: &mut [T]) {
        self.stretches(|row, place, to, step, len| {
            let from = &columns[row * self.places + place..][..len];
            from.iter().enumerate().for_each(|(i, &v)| x[to + i * step] = x[to + i * step] + v);
        });
    }

    fn part<'a, T>(&self, values: &'a [T], index: usize, size: usize) -> &'a [T] {
        &values[index * size..(index + 1) * size]
    }

    fn threads(&self) -> bool {
        self.samples * self.groups * self.outputs * self.rows() * self.places >= SPLIT
    }
}

/// Runs a task for each sample's group, over threads if the whole is worth it.
fn each<T: Send>(g: &Geometry, out: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    if size == 0 {
        return;
    }
    let parts = out.chunks_mut(size).enumerate();
    if g.threads() {
        parts.par_bridge().for_each(|(i, c)| task(i, c));
    } else {
        parts.for_each(|(i, c)| task(i, c));
    }
}

fn forward<T: Real + LinalgScalar>(g: &Geometry, x: &[T], w: &[T]) -> Vec<T> {
    let mut y = vec![T::default(); g.samples * g.groups * g.outputs * g.places];
    each(g, &mut y, g.outputs * g.places, |i, y| {
        let mut columns = vec![T::default(); g.rows() * g.places];
        g.unfold(g.part(x, i, g.channels * g.area), &mut columns);
        let w = matrix(g.part(w, i % g.groups, g.outputs * g.rows()), g.outputs, g.rows(), false);
        multiply(&w, &matrix(&columns, g.rows(), g.places, false), y, false);
    });
    y
}

fn input<T: Real + LinalgScalar>(g: &Geometry, y: &[T], w: &[T]) -> Vec<T> {
    let mut x = vec![T::default(); g.samples * g.groups * g.channels * g.area];
    each(g, &mut x, g.channels * g.area, |i, x| {
        let mut columns = vec![T::default(); g.rows() * g.places];
        if g.places > 0 {
            let w = matrix(g.part(w, i % g.groups, g.outputs * g.rows()), g.rows(), g.outputs, true);
            let y = matrix(g.part(y, i, g.outputs * g.places), g.outputs, g.places, false);
            multiply(&w, &y, &mut columns, false);
        }
        g.fold(&columns, x);
    });
    x
}

/// Samples add up in order, so that sums do not depend on the number of threads.
fn weight<T: Real + LinalgScalar>(g: &Geometry, x: &[T], y: &[T]) -> Vec<T> {
    let size = g.outputs * g.rows();
    let mut w = vec![T::default(); g.groups * size];
    let one = |i: usize| {
        let mut columns = vec![T::default(); g.rows() * g.places];
        g.unfold(g.part(x, i, g.channels * g.area), &mut columns);
        let mut part = vec![T::default(); size];
        if g.rows() > 0 && g.places > 0 {
            let y = matrix(g.part(y, i, g.outputs * g.places), g.outputs, g.places, false);
            multiply(&y, &matrix(&columns, g.places, g.rows(), true), &mut part, false);
        }
        part
    };
    let tasks: Vec<usize> = (0..g.samples * g.groups).collect();
    // As many at a time as threads can use; each holds a copy of the weights.
    for some in tasks.chunks(16) {
        let parts: Vec<Vec<T>> = if g.threads() {
            some.par_iter().map(|&i| one(i)).collect()
        } else {
            some.iter().map(|&i| one(i)).collect()
        };
        for (&i, part) in some.iter().zip(parts) {
            let to = &mut w[i % g.groups * size..][..size];
            to.iter_mut().zip(part).for_each(|(t, p)| *t = *t + p);
        }
    }
    w
}
