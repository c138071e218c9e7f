//! Byte buffers aligned for every element type.

/// Raw memory of a buffer. Aligned to 8 bytes, so that it can be viewed as elements of any format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bytes {
    words: Vec<u64>,
    len: usize,
}

impl Bytes {
    /// So many bytes of 0.
    pub fn zeroed(len: usize) -> Bytes {
        Bytes { words: vec![0; len.div_ceil(8)], len }
    }

    /// A copy.
    pub fn from_slice(bytes: &[u8]) -> Bytes {
        let mut b = Bytes::zeroed(bytes.len());
        b.as_mut().copy_from_slice(bytes);
        b
    }

    /// Makes the buffer `len` bytes long; the contents are unspecified.
    pub fn resize(&mut self, len: usize) {
        self.words.resize(len.div_ceil(8), 0);
        self.len = len;
    }

    /// Bytes that fit without another allocation.
    pub fn capacity(&self) -> usize {
        self.words.capacity() * 8
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

impl AsMut<[u8]> for Bytes {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}
