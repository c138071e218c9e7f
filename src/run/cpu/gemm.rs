//! Matrix products: operands widened exactly, multiplied and accumulated in registers' precision.

use super::real::Real;
use crate::format::Format;
use crate::lower::{Address, Gemm, Program};
use crate::run::Bytes;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, LinalgScalar, ShapeBuilder};
use rayon::prelude::*;
use std::borrow::Cow;

/// Multiply-adds below which a second thread costs more than it saves.
pub const SPLIT: usize = 1 << 21;
/// Rows of the result one task computes; fixed, so that results do not depend on the number of threads.
const ROWS: usize = 64;

/// The accumulator of every result element, `[batch, m, n]` row-major.
pub fn product<T: Real + LinalgScalar>(g: &Gemm, program: &Program, memory: &[Bytes]) -> Vec<T> {
    let [a, b] = operands([g.a, g.b], g.operand_elements(), g.format, program, memory);
    let mut out = vec![T::default(); g.batch * g.m * g.n];
    if out.is_empty() || g.k == 0 {
        return out;
    }
    let one = |(i, c): (usize, &mut [T])| {
        let a = matrix(&a[i * g.stride_a..][..g.m * g.k], g.m, g.k, g.ta);
        let b = matrix(&b[i * g.stride_b..][..g.k * g.n], g.k, g.n, g.tb);
        multiply(&a, &b, c, g.m * g.n * g.k >= SPLIT);
    };
    let matrices = out.chunks_mut(g.m * g.n);
    if g.m * g.n * g.k < SPLIT && g.batch * g.m * g.n * g.k >= SPLIT {
        matrices.enumerate().par_bridge().for_each(one);
    } else {
        matrices.enumerate().for_each(one);
    }
    out
}

/// c = a·b, with `c` row-major; in blocks of rows over threads if it is worth it.
pub fn multiply<T: Real + LinalgScalar>(a: &ArrayView2<T>, b: &ArrayView2<T>, c: &mut [T], threads: bool) {
    let n = b.ncols();
    let rows = |(r, c): (usize, &mut [T])| {
        let height = c.len() / n;
        let mut c = ArrayViewMut2::from_shape((height, n), c).expect("a whole number of rows");
        let a = a.slice(ndarray::s![r * ROWS..r * ROWS + height, ..]);
        general_mat_mul(T::of(1.0), &a, b, T::of(0.0), &mut c);
    };
    let blocks = c.chunks_mut(ROWS * n);
    if threads {
        blocks.enumerate().par_bridge().for_each(rows);
    } else {
        blocks.enumerate().for_each(rows);
    }
}

/// `rows × columns` of memory that holds them, or their transpose, row-major.
pub fn matrix<T>(data: &[T], rows: usize, columns: usize, transposed: bool) -> ArrayView2<'_, T> {
    let view = if transposed {
        ArrayView2::from_shape((rows, columns).strides((1, rows)), data)
    } else {
        ArrayView2::from_shape((rows, columns), data)
    };
    view.expect("operands fill their shapes")
}

/// Both operands' elements in registers' format, rounded to what is multiplied.
pub fn operands<'a, T: Real>(
    at: [Address; 2],
    counts: [usize; 2],
    multiply: Format,
    program: &Program,
    memory: &'a [Bytes],
) -> [Cow<'a, [T]>; 2] {
    [0, 1].map(|i| {
        let mut values: Cow<'a, [T]> = elements(at[i], counts[i], program, memory);
        let format = program.buffers[at[i].buffer].ty.format;
        if multiply.is_low() && multiply != format || multiply == Format::Tf32 {
            values.to_mut().iter_mut().for_each(|v: &mut T| *v = T::of(multiply.stored(v.get())));
        }
        values
    })
}

/// `count` elements in registers' format; in place where memory has it.
pub fn elements<'a, T: Real>(at: Address, count: usize, program: &Program, memory: &'a [Bytes]) -> Cow<'a, [T]> {
    let format = program.buffers[at.buffer].ty.format;
    let bytes = &memory[at.buffer].as_ref()[at.offset * format.bytes()..][..count * format.bytes()];
    if let Some(same) = T::borrow(format, bytes) {
        return Cow::Borrowed(same);
    }
    let mut wide = vec![T::default(); count];
    T::widen(format, bytes, &mut wide);
    Cow::Owned(wide)
}
