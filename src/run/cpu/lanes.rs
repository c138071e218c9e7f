//! Addressing: the stretches of memory a block of lanes reads or writes through a view.

use super::real::Real;
use crate::format::Format;
use crate::lower::View;
use std::ops::Range;

/// A block of consecutive flat indices over the axes `axes`; the other axes stand at `fixed`.
pub struct Block<'a> {
    pub dims: &'a [usize],
    pub axes: Range<usize>,
    pub fixed: &'a [usize],
    pub start: usize,
    pub len: usize,
}

/// `len` lanes from `lane` on: addresses `at, at + stride, …`; the last axis stands at `position` in the first of them.
pub struct Run<'a> {
    pub lane: usize,
    pub at: usize,
    pub stride: usize,
    pub len: usize,
    pub index: &'a [usize],
}

impl Block<'_> {
    /// Calls `f` with each run along the last lane axis.
    pub fn runs(&self, view: &View, mut f: impl FnMut(Run)) {
        let rank = view.dims.len();
        let mut index = self.fixed.to_vec();
        let base: usize = view.offset
            + (0..rank).filter(|a| !self.axes.contains(a)).map(|a| index[a] * view.strides[a]).sum::<usize>();
        if self.axes.is_empty() {
            return f(Run { lane: 0, at: base, stride: 0, len: self.len, index: &index });
        }
        let mut rest = self.start;
        for a in self.axes.clone().rev() {
            index[a] = rest % self.dims[a];
            rest /= self.dims[a];
        }
        let last = self.axes.end - 1;
        let mut lane = 0;
        while lane < self.len {
            let len = (self.dims[last] - index[last]).min(self.len - lane);
            let at = base + self.axes.clone().filter(|&a| a < rank).map(|a| index[a] * view.strides[a]).sum::<usize>();
            let stride = if last < rank { view.strides[last] } else { 0 };
            f(Run { lane, at, stride, len, index: &index });
            lane += len;
            index[last] += len;
            let mut a = last;
            while index[a] == self.dims[a] && a > self.axes.start {
                index[a] = 0;
                a -= 1;
                index[a] += 1;
            }
        }
    }
}

/// Reads a run of elements.
pub fn load<T: Real>(format: Format, bytes: &[u8], at: usize, stride: usize, out: &mut [T]) {
    let size = format.bytes();
    match stride {
        _ if out.is_empty() => {}
        0 => {
            let mut one = [T::default()];
            T::widen(format, &bytes[at * size..(at + 1) * size], &mut one);
            out.fill(one[0]);
        }
        1 => T::widen(format, &bytes[at * size..(at + out.len()) * size], out),
        _ => {
            for (i, v) in out.iter_mut().enumerate() {
                let p = (at + i * stride) * size;
                T::widen(format, &bytes[p..p + size], std::slice::from_mut(v));
            }
        }
    }
}

/// Rounds and writes a run of elements.
pub fn store<T: Real>(format: Format, bytes: &mut [u8], at: usize, stride: usize, values: &[T]) {
    let size = format.bytes();
    if stride == 1 {
        return T::narrow(format, values, &mut bytes[at * size..(at + values.len()) * size]);
    }
    for (i, v) in values.iter().enumerate() {
        let p = (at + i * stride) * size;
        T::narrow(format, std::slice::from_ref(v), &mut bytes[p..p + size]);
    }
}

/// A row-major index as one index an axis.
pub(super) fn unflatten(mut flat: usize, dims: &[usize], index: &mut [usize]) {
    for (i, &d) in index.iter_mut().zip(dims).rev() {
        *i = flat % d;
        flat /= d;
    }
}
