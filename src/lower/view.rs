//! Strided views: how a kernel's indices address a buffer.

/// Element `offset + Σ index·stride` for an index within `dims`. Strides are in elements; 0 repeats.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct View {
    pub offset: usize,
    pub dims: Vec<usize>,
    pub strides: Vec<usize>,
}

impl View {
    /// The whole of a row-major buffer.
    pub fn contiguous(dims: &[usize]) -> View {
        let mut strides = vec![1; dims.len()];
        for i in (1..dims.len()).rev() {
            strides[i - 1] = strides[i] * dims[i];
        }
        View { offset: 0, dims: dims.to_vec(), strides }
    }

    /// NumPy broadcasting to `dims`, aligned at the right.
    pub fn broadcast(&self, dims: &[usize]) -> View {
        let lead = dims.len() - self.dims.len();
        let strides = (0..dims.len())
            .map(|i| if i < lead || (self.dims[i - lead] == 1 && dims[i] != 1) { 0 } else { self.strides[i - lead] })
            .collect();
        View { offset: self.offset, dims: dims.to_vec(), strides }
    }

    pub fn transpose(&self, perm: &[usize]) -> View {
        View {
            offset: self.offset,
            dims: perm.iter().map(|&p| self.dims[p]).collect(),
            strides: perm.iter().map(|&p| self.strides[p]).collect(),
        }
    }

    pub fn slice(&self, axis: usize, start: usize, stop: usize, step: usize) -> View {
        let mut v = self.clone();
        v.offset += start * v.strides[axis];
        v.dims[axis] = (stop - start).div_ceil(step);
        v.strides[axis] *= step;
        v
    }

    /// The same elements under another shape, if strides can say so without a copy.
    pub fn reshape(&self, dims: &[usize]) -> Option<View> {
        if dims.contains(&0) {
            return Some(View { offset: self.offset, dims: dims.to_vec(), strides: vec![0; dims.len()] });
        }
        // Runs of old axes that address memory as one axis, each split into new axes.
        let old: Vec<(usize, usize)> =
            self.dims.iter().copied().zip(self.strides.iter().copied()).filter(|d| d.0 != 1).collect();
        let mut strides = vec![0; dims.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (mut from, mut to) = (old[i].0, 1);
            let first_new = j;
            let mut last_old = i;
            while from != to || to == 1 {
                if to < from {
                    to *= *dims.get(j)?;
                    j += 1;
                } else {
                    last_old += 1;
                    let next = old.get(last_old)?;
                    if old[last_old - 1].1 != next.0 * next.1 {
                        return None;
                    }
                    from *= next.0;
                }
            }
            let mut stride = old[last_old].1;
            for k in (first_new..j).rev() {
                strides[k] = stride;
                stride *= dims[k];
            }
            i = last_old + 1;
        }
        Some(View { offset: self.offset, dims: dims.to_vec(), strides })
    }

    /// How many different elements the view reaches.
    pub fn distinct(&self) -> usize {
        self.dims.iter().zip(&self.strides).map(|(&d, &s)| if s == 0 { 1 } else { d }).product()
    }
}

#[cfg(test)]
mod tests {
    use super::View;

    fn elements(v: &View) -> Vec<usize> {
        let mut out = Vec::new();
        crate::ir::Tensor::from_fn(&v.dims, |i| {
            out.push(v.offset + i.iter().zip(&v.strides).map(|(a, b)| a * b).sum::<usize>());
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
}
