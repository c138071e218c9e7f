//! Dense f64 tensors for the reference evaluator: clarity before speed.

/// Row-major values. Integers and booleans are held as f64 (exact to 2^53).
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first; none for a scalar.
    pub dims: Vec<usize>,
    /// As many elements as the extents multiply to.
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor of these elements.
    ///
    /// # Panics
    /// If they are not as many as the extents multiply to.
    pub fn new(dims: &[usize], data: Vec<f64>) -> Tensor {
        assert_eq!(dims.iter().product::<usize>(), data.len(), "data fills the shape");
        Tensor { dims: dims.to_vec(), data }
    }

    pub(crate) fn scalar(x: f64) -> Tensor {
        Tensor { dims: Vec::new(), data: vec![x] }
    }

    pub(crate) fn full(dims: &[usize], x: f64) -> Tensor {
        Tensor::new(dims, vec![x; dims.iter().product()])
    }

    /// Builds a tensor from a function of the index.
    pub fn from_fn(dims: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Tensor {
        let mut data = Vec::with_capacity(dims.iter().product());
        for_each_index(dims, |index| data.push(f(index)));
        Tensor::new(dims, data)
    }

    /// The element at `index`.
    pub fn at(&self, index: &[usize]) -> f64 {
        self.data[self.offset(index)]
    }

    pub(crate) fn at_mut(&mut self, index: &[usize]) -> &mut f64 {
        let i = self.offset(index);
        &mut self.data[i]
    }

    /// The element a NumPy-broadcast view of this tensor has at `index` (aligned at the right).
    pub fn at_broadcast(&self, index: &[usize]) -> f64 {
        let skip = index.len() - self.dims.len();
        let own: Vec<usize> = index[skip..].iter().zip(&self.dims).map(|(&i, &d)| if d == 1 { 0 } else { i }).collect();
        self.at(&own)
    }

    fn offset(&self, index: &[usize]) -> usize {
        index.iter().zip(&self.dims).fold(0, |o, (&i, &d)| o * d + i)
    }

    /// The function's value at every element.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Tensor {
        Tensor { dims: self.dims.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }
}

/// Calls `f` with every index of `dims` in row-major order; once with `[]` for a scalar, never if an extent is 0.
pub fn for_each_index(dims: &[usize], mut f: impl FnMut(&[usize])) {
    if dims.contains(&0) {
        return;
    }
    let mut index = vec![0; dims.len()];
    loop {
        f(&index);
        let Some(axis) = (0..dims.len()).rev().find(|&a| index[a] + 1 < dims[a]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}
