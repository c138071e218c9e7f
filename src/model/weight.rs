//! Tensors that a model file holds, left where they lie until somebody needs them.

use crate::format::{Format, Register};
use crate::memory::Bytes;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Values of parameters and constants, by name.
pub type Weights = BTreeMap<String, Weight>;

/// A tensor of a model file. Cheap to copy: the values are shared, or still in the file.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Format of an element.
    pub format: Format,
    /// Extents, outermost first; none of a scalar.
    pub dims: Vec<usize>,
    data: Data,
}

#[derive(Clone, Debug)]
enum Data {
    Held(Arc<Bytes>),
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Weight {
    /// Are there elements with different bytes?
    pub fn varies(&self) -> bool {
        let mut elements = self.bytes().chunks(self.format.bytes());
        let first = elements.next();
        elements.any(|e| Some(e) != first)
    }

    /// Is this the same tensor, bit for bit?
    pub(super) fn is_same(&self, other: &Weight) -> bool {
        self.format == other.format && self.dims == other.dims && self.bytes() == other.bytes()
    }

    /// From raw little-endian elements.
    pub fn from_bytes(format: Format, dims: &[usize], bytes: &[u8]) -> Weight {
        Weight { format, dims: dims.to_vec(), data: Data::Held(Arc::new(Bytes::from_slice(bytes))) }
    }

    /// From values, rounded to the format.
    pub fn from_values<T: Register>(format: Format, dims: &[usize], values: &[T]) -> Weight {
        let mut bytes = Bytes::zeroed(values.len() * format.bytes());
        T::narrow(format, values, bytes.as_mut());
        Weight { format, dims: dims.to_vec(), data: Data::Held(Arc::new(bytes)) }
    }

    /// A part of a mapped file.
    pub(super) fn mapped(format: Format, dims: &[usize], map: Arc<Mmap>, range: Range<usize>) -> Weight {
        Weight { format, dims: dims.to_vec(), data: Data::Mapped(map, range) }
    }

    /// How many there are; 1 in a scalar.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Raw little-endian elements.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Held(b) => (**b).as_ref(),
            Data::Mapped(map, range) => &map[range.clone()],
        }
    }

    /// The values, widened to f32 or f64.
    pub fn values<T: Register + Default>(&self) -> Vec<T> {
        let mut out = vec![T::default(); self.elements()];
        // A file's bytes may lie at any address, so they are copied to aligned memory, a part at a time.
        const PART: usize = 1 << 16;
        for (out, bytes) in out.chunks_mut(PART).zip(self.bytes().chunks(PART * self.format.bytes())) {
            T::widen(self.format, Bytes::from_slice(bytes).as_ref(), out);
        }
        out
    }
}
