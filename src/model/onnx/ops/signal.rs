//! Fourier transforms, as products with tables of sines and cosines.

use super::Handler;
use crate::format::Format;
use crate::ir::Num;
use crate::ir::{Binary, NodeId, Op};
use crate::model::onnx::node::{Import, Node};
use std::f64::consts::TAU;

pub const OPS: &[(&str, Handler)] = &[("DFT", dft), ("STFT", stft)];

/// Which transform.
#[derive(Clone, Copy)]
struct Transform {
    /// Samples that are transformed.
    length: usize,
    inverse: bool,
    /// Only the frequencies that determine those of a real signal.
    onesided: bool,
}

impl Transform {
    fn frequencies(self) -> usize {
        if self.onesided { self.length / 2 + 1 } else { self.length }
    }
}

/// Transforms an axis of a tensor whose last axis holds real numbers, or real and imaginary parts.
fn dft(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    let rank = n.rank(x);
    if rank < 2 {
        return Err("takes a tensor of rank 2 or more: the last axis holds real and imaginary parts".into());
    }
    // The axis was an attribute before opset 20.
    let axis = match n.attr("axis") {
        Some(a) => a.i(),
        None if n.has(2) => n.ints(2)?.first().copied().unwrap_or(-2),
        None => {
            if n.im.opset < 20 {
                1
            } else {
                -2
            }
        }
    };
    let axis = n.axis(axis, rank)?;
    if axis + 1 == rank {
        return Err("transforms the axis of real and imaginary parts".into());
    }
    let (onesided, inverse) = (n.flag("onesided", false), n.flag("inverse", false));
    if onesided && inverse {
        return Err("an inverse transform of one side is not supported; give it all frequencies".into());
    }
    let length = match n.has(1) {
        true => n.ints(1)?.first().copied().and_then(|l| usize::try_from(l).ok()).ok_or("has a negative length")?,
        false => n.dims(x)[axis],
    };
    Ok(vec![transformed(n, x, axis, Transform { length, inverse, onesided })?])
}

/// Transforms an axis: Xₖ = Σₜ xₜ exp(∓2πi kt / n), divided by n in the inverse (ONNX DFT).
fn transformed(n: &mut Node, x: NodeId, axis: usize, t: Transform) -> Import<NodeId> {
    let (dims, rank) = (n.dims(x), n.rank(x));
    let (given, parts, k) = (dims[axis].min(t.length), dims[rank - 1], t.frequencies());
    if !matches!(parts, 1 | 2) || t.length == 0 {
        return Err(format!("{dims:?} holds neither real nor complex numbers to transform"));
    }
    // A longer signal is cut, a shorter one goes on with zeros, which add nothing.
    let x = n.slice(x, axis, 0, given)?;
    let mut perm: Vec<usize> = (0..rank - 1).filter(|&a| a != axis).collect();
    let lead: Vec<usize> = perm.iter().map(|&a| dims[a]).collect();
    perm.extend([axis, rank - 1]);
    let x = n.transpose(x, &perm)?;
    let rows: usize = lead.iter().product();
    let x = n.reshape(x, &[rows, given * parts])?;
    let mut table = Vec::with_capacity(n.room(&[given, parts, k, 2])?);
    let scale = if t.inverse { 1.0 / t.length as f64 } else { 1.0 };
    for (at, part, frequency) in (0..given).flat_map(|a| (0..parts).flat_map(move |p| (0..k).map(move |f| (a, p, f)))) {
        // Whole turns are left out before the angle is rounded.
        let turns = (at * frequency % t.length) as f64 / t.length as f64;
        let (sin, cos) = (TAU * if t.inverse { turns } else { -turns }).sin_cos();
        table.extend(if part == 0 { [cos * scale, sin * scale] } else { [-sin * scale, cos * scale] });
    }
    let table = n.table(&[given * parts, 2 * k], table, Format::F32)?;
    let y = n.matmul(x, table, false, false)?;
    let y = n.reshape(y, &[&lead[..], &[k, 2]].concat())?;
    let mut back: Vec<usize> = (0..rank - 2).collect();
    back.insert(axis, rank - 2);
    back.push(rank - 1);
    n.transpose(y, &back)
}

/// Transforms of the windows of a signal (batch, samples, 1 or 2): (batch, windows, frequencies, 2).
fn stft(n: &mut Node) -> Import<Vec<NodeId>> {
    let x = n.x(0)?;
    n.demand_rank(x, 3, "the signal")?;
    let whole = |n: &Node, i: usize| -> Import<usize> {
        let v = n.ints(i)?.first().copied().unwrap_or(0);
        usize::try_from(v).ok().filter(|&v| v > 0).ok_or_else(|| format!("input {i} is {v}; it must be positive"))
    };
    let step = whole(n, 1)?;
    let window = n.maybe(2)?;
    let length = match (n.has(3), window) {
        (true, _) => whole(n, 3)?,
        (false, Some(w)) => n.dims(w).first().copied().unwrap_or(0),
        (false, None) => return Err("lacks both a window and the length of its frames".into()),
    };
    if length == 0 || length > n.dims(x)[1] {
        return Err(format!("frames of {length} samples do not fit a signal of {}", n.dims(x)[1]));
    }
    let frames = Op::Window { axis: 1, size: length, stride: step, dilation: 1, lo: 0, hi: 0, fill: Num::new(0.0) };
    let mut y = n.add(frames, &[x])?;
    if let Some(w) = window {
        let w = n.reshape(w, &[length, 1])?;
        y = n.bin(Binary::Mul, y, w)?;
    }
    let onesided = n.flag("onesided", true) && n.dims(x)[2] == 1;
    Ok(vec![transformed(n, y, 2, Transform { length, inverse: false, onesided })?])
}
