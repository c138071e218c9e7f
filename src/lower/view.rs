//! Strided views: how a kernel's indices address a buffer.

use crate::ir::Num;

/// Elements of a narrow format that are moved at once.
pub(crate) const WIDE: usize = 8;

/// Element `offset + Σ index·stride` for an index within `dims`. Strides are in elements; 0 repeats. Guards add positions
/// that may lie outside the buffer: padding and windows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    /// Elements before that of index 0.
    pub offset: usize,
    /// Extents of the index.
    pub dims: Vec<usize>,
    /// Elements from one index to the next, by axis.
    pub strides: Vec<usize>,
    /// Positions that may lie outside; none in a plain view.
    pub guards: Vec<Guard>,
}

/// A position `p = offset + Σ index·coefficient`, in steps of `step`: if p is a step from 0 to `extent`, the address
/// moves by p / step · stride; if not, the element is `fill`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guard {
    /// Axes of the view with their coefficients.
    pub terms: Vec<(usize, isize)>,
    /// p at index 0; below 0 before the first element.
    pub offset: isize,
    /// Positions from one element to the next: above 1 where zeros lie between.
    pub step: usize,
    /// Elements along the buffer's axis.
    pub extent: usize,
    /// Elements of the buffer from one step to the next.
    pub stride: usize,
    /// What stands outside, and between the steps.
    pub fill: Num,
}

impl Guard {
    /// How far the address moves at an index, or none outside.
    pub fn reach(&self, index: impl Fn(usize) -> usize) -> Option<usize> {
        let p = self.terms.iter().fold(self.offset, |p, &(a, c)| p + index(a) as isize * c);
        let p = usize::try_from(p).ok()?;
        (p.is_multiple_of(self.step) && p / self.step < self.extent).then(|| p / self.step * self.stride)
    }
}

/// [`View::has_wide_rows`], of a view without guards.
pub(super) fn are_wide_rows(offset: usize, dims: &[usize], strides: &[usize]) -> bool {
    let wide = |n: usize| n.is_multiple_of(WIDE);
    let mut axes = dims.iter().zip(strides).rev().filter(|(d, _)| **d != 1);
    wide(offset) && axes.next().is_none_or(|(_, step)| *step == 1) && axes.all(|(_, step)| wide(*step))
}

impl View {
    /// The whole of a row-major buffer.
    pub fn contiguous(dims: &[usize]) -> View {
        let mut strides = vec![1; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        View { offset: 0, dims: dims.to_vec(), strides, guards: Vec::new() }
    }

    /// Is it, from its first element on, a whole row-major buffer of its extents?
    pub(super) fn is_whole(&self) -> bool {
        *self == View { offset: self.offset, ..View::contiguous(&self.dims) }
    }

    /// Are rows of the last axis in one piece, each beginning where a narrow format is moved sixteen bytes at once?
    pub(super) fn has_wide_rows(&self) -> bool {
        self.guards.is_empty() && are_wide_rows(self.offset, &self.dims, &self.strides)
    }

    /// Renames the axes of the guards; an axis that `to` drops stands at 0.
    fn renamed(&self, to: impl Fn(usize) -> Option<usize>) -> Vec<Guard> {
        let rename =
            |g: &Guard| Guard { terms: g.terms.iter().filter_map(|&(a, c)| Some((to(a)?, c))).collect(), ..g.clone() };
        self.guards.iter().map(rename).collect()
    }

    /// Does a guard stand on this axis?
    pub(super) fn guarded(&self, axis: usize) -> bool {
        self.guards.iter().any(|g| g.terms.iter().any(|t| t.0 == axis))
    }

    /// NumPy broadcasting to `dims`, aligned at the right.
    pub fn broadcast(&self, dims: &[usize]) -> View {
        let lead = dims.len() - self.dims.len();
        let repeats = |i: usize| self.dims[i - lead] == 1 && dims[i] != 1;
        let strides =
            (0..dims.len()).map(|i| if i < lead || repeats(i) { 0 } else { self.strides[i - lead] }).collect();
        let guards = self.renamed(|a| (!repeats(a + lead)).then_some(a + lead));
        View { offset: self.offset, dims: dims.to_vec(), strides, guards }
    }

    /// The axes in another order: axis i was axis `perm[i]`.
    pub fn transpose(&self, perm: &[usize]) -> View {
        View {
            offset: self.offset,
            dims: perm.iter().map(|&p| self.dims[p]).collect(),
            strides: perm.iter().map(|&p| self.strides[p]).collect(),
            guards: self.renamed(|a| perm.iter().position(|&p| p == a)),
        }
    }

    /// Every `step`-th element of an axis from `start` up to, not including, `stop`.
    pub fn slice(&self, axis: usize, start: usize, stop: usize, step: usize) -> View {
        let mut v = self.clone();
        v.offset += start * v.strides[axis];
        v.dims[axis] = (stop - start).div_ceil(step);
        v.strides[axis] *= step;
        for g in &mut v.guards {
            for (a, c) in &mut g.terms {
                if *a == axis {
                    g.offset += start as isize * *c;
                    *c *= step as isize;
                }
            }
        }
        v
    }

    /// Replaces an axis by others that reach it through a guard; none if a guard is on it already.
    fn through(&self, axis: usize, dims: &[usize], mut guard: Guard) -> Option<View> {
        // One guard an axis, and one fill a view: which of two would win is not said.
        if self.guarded(axis) || self.guards.iter().any(|g| g.fill != guard.fill) {
            return None;
        }
        let shift = dims.len() - 1;
        let mut v = self.clone();
        v.guards = self.renamed(|a| Some(if a > axis { a + shift } else { a }));
        (guard.extent, guard.stride) = (self.dims[axis], self.strides[axis]);
        v.guards.push(guard);
        v.dims.splice(axis..=axis, dims.iter().copied());
        v.strides.splice(axis..=axis, vec![0; dims.len()]);
        Some(v)
    }

    /// Zeros before, between and behind the elements of an axis.
    pub fn pad(&self, axis: usize, lo: usize, hi: usize, inner: usize) -> Option<View> {
        let n = self.dims[axis];
        let guard = Guard {
            terms: vec![(axis, 1)],
            offset: -(lo as isize),
            step: inner + 1,
            extent: 0,
            stride: 0,
            fill: Num::new(0.0),
        };
        self.through(axis, &[lo + n + n.saturating_sub(1) * inner + hi], guard)
    }

    /// The view along an axis of `total` positions at which it stands from `start` on. What is read at the others is any of
    /// its elements, or a fill.
    pub fn placed(&self, axis: usize, start: usize, total: usize) -> View {
        let mut v = self.clone();
        v.dims[axis] = total;
        for g in &mut v.guards {
            let along: isize = g.terms.iter().filter(|t| t.0 == axis).map(|t| t.1).sum();
            g.offset -= start as isize * along;
        }
        // A guard that is there keeps what it moves within the buffer, at every position.
        let stride = std::mem::take(&mut v.strides[axis]);
        if stride != 0 || !self.guarded(axis) {
            let fill = v.guards.first().map_or(Num::new(0.0), |g| g.fill);
            let (terms, offset, extent) = (vec![(axis, 1)], -(start as isize), self.dims[axis]);
            v.guards.push(Guard { terms, offset, step: 1, extent, stride, fill });
        }
        v
    }

    /// [`crate::ir::Op::Window`], with its result's two extents.
    pub fn window(&self, axis: usize, dims: [usize; 2], step: [usize; 2], lo: usize, fill: Num) -> Option<View> {
        let terms = vec![(axis, step[0] as isize), (axis + 1, step[1] as isize)];
        self.through(axis, &dims, Guard { terms, offset: -(lo as isize), step: 1, extent: 0, stride: 0, fill })
    }

    /// [`crate::ir::Op::Unwindow`]: its result's first extent stands for the axis of positions.
    pub fn unwindow(&self, axis: usize, extent: usize, step: [usize; 2], lo: usize) -> Option<View> {
        let terms = vec![(axis, 1), (axis + 1, -(step[1] as isize))];
        let fill = Num::new(0.0);
        self.through(axis, &[extent], Guard { terms, offset: lo as isize, step: step[0], extent: 0, stride: 0, fill })
    }

    /// The same elements under another shape, if strides can say so without a copy.
    pub fn reshape(&self, dims: &[usize]) -> Option<View> {
        if dims.contains(&0) {
            return Some(View {
                offset: self.offset,
                dims: dims.to_vec(),
                strides: vec![0; dims.len()],
                guards: Vec::new(),
            });
        }
        // Runs of old axes that address memory as one axis, each split into new axes. A guarded axis stays whole.
        let old: Vec<usize> = (0..self.dims.len()).filter(|&i| self.dims[i] != 1).collect();
        let mut strides = vec![0; dims.len()];
        let mut to = vec![None; self.dims.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (mut from, mut reached) = (self.dims[old[i]], 1);
            let first_new = j;
            let mut last_old = i;
            while from != reached || reached == 1 {
                if reached < from {
                    reached *= *dims.get(j)?;
                    j += 1;
                } else {
                    last_old += 1;
                    let (before, next) = (old[last_old - 1], *old.get(last_old)?);
                    if self.strides[before] != self.dims[next] * self.strides[next] {
                        return None;
                    }
                    from *= self.dims[next];
                }
            }
            if old[i..=last_old].iter().any(|&a| self.guarded(a)) {
                let mut kept = (first_new..j).filter(|&k| dims[k] != 1);
                let (Some(k), None, true) = (kept.next(), kept.next(), i == last_old) else { return None };
                to[old[i]] = Some(k);
            }
            let mut stride = self.strides[old[last_old]];
            for k in (first_new..j).rev() {
                strides[k] = stride;
                stride *= dims[k];
            }
            i = last_old + 1;
        }
        let guards = self.renamed(|a| to[a]);
        Some(View { offset: self.offset, dims: dims.to_vec(), strides, guards })
    }

    /// How many different elements the view reaches, at most.
    pub fn distinct(&self) -> usize {
        let plain: usize = (0..self.dims.len())
            .map(|a| if self.strides[a] == 0 || self.guarded(a) { 1 } else { self.dims[a] })
            .product();
        plain * self.guards.iter().map(|g| if g.stride == 0 { 1 } else { g.extent }).product::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::View;
    use crate::ir::Num;

    fn elements(v: &View) -> Vec<usize> {
        let mut out = Vec::new();
        crate::ir::Tensor::from_fn(&v.dims, |i| {
            let plain = v.offset + i.iter().zip(&v.strides).map(|(a, b)| a * b).sum::<usize>();
            let moved: Option<usize> = v.guards.iter().map(|g| g.reach(|a| i[a])).sum();
            out.push(moved.map_or(usize::MAX, |m| plain + m));
            0.0
        });
        out
    }

    #[test]
    fn reshape_keeps_the_order_of_elements_or_refuses() {
        let base = View::contiguous(&[4, 6]);
        for dims in [&[24][..], &[2, 12], &[4, 1, 6], &[2, 2, 3, 2], &[1, 24, 1]] {
            assert_eq!(elements(&base.reshape(dims).unwrap()), (0..24).collect::<Vec<_>>(), "{dims:?}");
        }
        let t = base.transpose(&[1, 0]);
        assert!(t.reshape(&[24]).is_none());
        assert_eq!(elements(&t.reshape(&[2, 3, 4]).unwrap()), elements(&t));
        let s = base.slice(1, 1, 5, 2);
        assert_eq!(elements(&s), [1, 3, 7, 9, 13, 15, 19, 21]);
        assert_eq!(elements(&s.reshape(&[2, 2, 2]).unwrap()), elements(&s));
        assert!(s.reshape(&[8]).is_none(), "rows are 6 apart, two elements of 2 reach 4");
    }

    #[test]
    fn broadcast_repeats() {
        let row = View::contiguous(&[3]).broadcast(&[2, 3]);
        assert_eq!(elements(&row), [0, 1, 2, 0, 1, 2]);
        assert_eq!(row.distinct(), 3);
    }

    /// The part of a concatenation that a padded view is: `concat([0, 1, 2], pad([0, 1, 2], 0, 1))` once read `0 1 2 0 0 0 0`.
    #[test]
    fn a_part_of_a_concatenation_is_a_view_placed_in_it() {
        const OUT: usize = usize::MAX;
        let whole = View::contiguous(&[3]);
        assert_eq!(elements(&whole.placed(0, 2, 6)), [OUT, OUT, 0, 1, 2, OUT]);
        let padded = whole.pad(0, 1, 1, 0).unwrap();
        assert_eq!(elements(&padded.placed(0, 2, 8))[2..7], [OUT, 0, 1, 2, OUT]);
        let windows = whole.window(0, [2, 2], [1, 1], 0, Num::new(-1.0)).unwrap();
        assert_eq!(elements(&windows.placed(0, 1, 3))[2..6], [0, 1, 1, 2]);
        assert_eq!(elements(&windows.placed(1, 2, 4)), [OUT, OUT, 0, 1, OUT, 0, 1, 2]);
        // Where the axis both moves by itself and stands in a guard.
        let spread = View::contiguous(&[1, 2]).unwindow(0, 2, [1, 1], 0).unwrap();
        assert_eq!(elements(&spread), [0, OUT, OUT, 1]);
        assert_eq!(elements(&spread.placed(1, 1, 4)), [OUT, 0, OUT, OUT, OUT, OUT, 1, OUT]);
    }

    #[test]
    fn windows_compose_with_other_views() {
        const OUT: usize = usize::MAX;
        let zero = Num::new(0.0);
        // Rows of a 2 × 4 buffer, windows of 3 at stride 2 with one element of padding.
        let w = View::contiguous(&[2, 4]).window(1, [2, 3], [2, 1], 1, zero).unwrap();
        assert_eq!(elements(&w), [OUT, 0, 1, 1, 2, 3, OUT, 4, 5, 5, 6, 7]);
        assert_eq!(elements(&w.slice(2, 2, 3, 1)), [1, 3, 5, 7]);
        assert_eq!(elements(&w.reshape(&[1, 2, 2, 1, 3]).unwrap()), elements(&w));
        assert!(w.reshape(&[2, 6]).is_none() && w.pad(1, 1, 0, 0).is_none());
        // Each of 4 elements, as element k of a window, was in window (i + 1 − k) / 2.
        let u = View::contiguous(&[2, 3]).unwindow(0, 4, [2, 1], 1).unwrap();
        assert_eq!(elements(&u), [OUT, 1, OUT, 3, OUT, 2, OUT, 4, OUT, OUT, OUT, 5]);
        let p = View::contiguous(&[3]).pad(0, 1, 1, 1).unwrap();
        assert_eq!(elements(&p), [OUT, 0, OUT, 1, OUT, 2, OUT]);
        assert_eq!(elements(&p.slice(0, 1, 6, 2).broadcast(&[2, 3])), [0, 1, 2, 0, 1, 2]);
    }
}
