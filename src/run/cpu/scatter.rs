//! Rows written or accumulated at integer positions, one after the other: the last write stays, sums have one order.

use super::gemm::elements;
use super::real::Real;
use crate::ir::ops::resolve;
use crate::ir::{Binary, ScatterKind};
use crate::lower::{Program, Scatter};
use crate::run::Bytes;

/// The result, `[lead, rows, tail]` row-major.
pub fn product<T: Real>(s: &Scatter, program: &Program, memory: &[Bytes]) -> Vec<T> {
    let size = s.lead * s.rows * s.tail;
    let mut out = match s.base {
        Some(base) => elements(base, size, program, memory).into_owned(),
        None => vec![T::default(); size],
    };
    let index = elements::<f64>(s.index, s.positions, program, memory);
    let updates = elements::<T>(s.updates, s.lead * s.positions * s.tail, program, memory);
    let mut old = vec![T::default(); s.tail];
    for lead in 0..s.lead {
        for (i, &row) in index.iter().enumerate() {
            let row = resolve(row, s.rows);
            let new = &updates[(lead * s.positions + i) * s.tail..][..s.tail];
            let place = &mut out[(lead * s.rows + row) * s.tail..][..s.tail];
            old.copy_from_slice(place);
            match s.kind {
                ScatterKind::Set => place.copy_from_slice(new),
                ScatterKind::Add => T::binary(Binary::Add, &old, new, place),
                ScatterKind::Mul => T::binary(Binary::Mul, &old, new, place),
                ScatterKind::Max => T::binary(Binary::Max, &old, new, place),
                ScatterKind::Min => T::binary(Binary::Min, &old, new, place),
            }
        }
    }
    out
}
