//! Products: operands widened to f32 exactly, multiplied and accumulated in f32.

use crate::format::{Format, Overflow, widen};
use crate::lower::{BufferId, Gemm, Program};
use crate::run::Bytes;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};
use rayon::prelude::*;
use std::borrow::Cow;

/// Multiply-adds below which a second thread costs more than it saves.
const SPLIT: usize = 1 << 21;
/// Rows of the result one task computes; fixed, so that results do not depend on the number of threads.
const ROWS: usize = 64;

/// The accumulator of every result element, `[batch, m, n]` row-major.
pub fn product(g: &Gemm, program: &Program, memory: &[Bytes]) -> Vec<f32> {
    let (a, b) = (operand(g.a, g.format, program, memory), operand(g.b, g.format, program, memory));
    let mut out = vec![0.0; g.batch * g.m * g.n];
    if out.is_empty() || g.k == 0 {
        return out;
    }
    let work = g.m * g.n * g.k;
    for (i, c) in out.chunks_mut(g.m * g.n).enumerate() {
        let a = matrix(&a[i * g.stride_a..][..g.m * g.k], g.m, g.k, g.ta);
        let b = matrix(&b[i * g.stride_b..][..g.k * g.n], g.k, g.n, g.tb);
        let rows = |(r, c): (usize, &mut [f32])| {
            let height = c.len() / g.n;
            let mut c = ArrayViewMut2::from_shape((height, g.n), c).expect("a whole number of rows");
            general_mat_mul(1.0, &a.slice(ndarray::s![r * ROWS..r * ROWS + height, ..]), &b, 0.0, &mut c);
        };
        let blocks = c.chunks_mut(ROWS * g.n);
        if work >= SPLIT {
            blocks.enumerate().par_bridge().for_each(rows);
        } else {
            blocks.enumerate().for_each(rows);
        }
    }
    out
}

/// `rows × columns` of memory that holds them, or their transpose, row-major.
fn matrix(data: &[f32], rows: usize, columns: usize, transposed: bool) -> ArrayView2<'_, f32> {
    let view = if transposed {
        ArrayView2::from_shape((rows, columns).strides((1, rows)), data)
    } else {
        ArrayView2::from_shape((rows, columns), data)
    };
    view.expect("operands fill their shapes")
}

fn operand<'a>(buffer: BufferId, multiply: Format, program: &Program, memory: &'a [Bytes]) -> Cow<'a, [f32]> {
    let (format, bytes) = (program.buffers[buffer].ty.format, memory[buffer].as_ref());
    let mut values = if format == Format::F32 {
        Cow::Borrowed(bytemuck::cast_slice(bytes))
    } else {
        let mut wide = vec![0.0; program.buffers[buffer].ty.elements()];
        widen(format, bytes, &mut wide);
        Cow::Owned(wide)
    };
    if multiply != Format::F32 && multiply != format {
        values.to_mut().iter_mut().for_each(|v| *v = multiply.round(f64::from(*v), Overflow::Ieee) as f32);
    }
    values
}
