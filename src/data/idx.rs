//! The IDX format of MNIST: a big-endian header, then elements.

use super::Array;
use crate::error::{Error, Result};
use flate2::read::GzDecoder;
use std::io::{ErrorKind, Read};
use std::path::Path;

pub fn read(path: &Path) -> Result<Array> {
    let raw = std::fs::read(path).map_err(Error::io("read", path))?;
    let array = if raw.starts_with(&[0x1f, 0x8b]) { parse(GzDecoder::new(&raw[..])) } else { parse(&raw[..]) };
    array.map_err(|what| Error::data(path, what))
}

/// Takes no more from the reader than the header promises, whatever a packed file would unfold to.
fn parse(mut reader: impl Read) -> Result<Array, String> {
    let not_idx = |_| "this is not an IDX file; data files are IDX (optionally .gz), .npy, .npz and .csv".to_owned();
    let mut start = [0; 4];
    reader.read_exact(&mut start).map_err(not_idx)?;
    let [0, 0, kind, rank @ 1..=8] = start else { return Err(not_idx(ErrorKind::InvalidData.into())) };
    let mut header = vec![0; 4 * usize::from(rank)];
    reader.read_exact(&mut header).map_err(not_idx)?;
    let dims: Vec<usize> =
        header.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]) as usize).collect();
    let size = match kind {
        8 | 9 => 1,
        0xb => 2,
        0xc | 0xd => 4,
        0xe => 8,
        _ => return Err(not_idx(ErrorKind::InvalidData.into())),
    };
    let bytes = dims.iter().try_fold(size, |n: usize, &d| n.checked_mul(d));
    let bytes =
        bytes.filter(|&b| b < isize::MAX as usize).ok_or_else(|| format!("extents of {dims:?} are too large"))?;
    let mut data = Vec::new();
    reader.take(bytes as u64 + 1).read_to_end(&mut data).map_err(|e| format!("damaged data: {e}"))?;
    if data.len() != bytes {
        let found = if data.len() > bytes { "more".to_owned() } else { data.len().to_string() };
        return Err(format!(
            "the header promises {bytes} bytes of elements, {dims:?} of {size} bytes, but {found} follow"
        ));
    }
    let values = data
        .chunks_exact(size)
        .map(|c| match kind {
            8 => f64::from(c[0]),
            9 => f64::from(c[0] as i8),
            0xb => f64::from(i16::from_be_bytes([c[0], c[1]])),
            0xc => f64::from(i32::from_be_bytes([c[0], c[1], c[2], c[3]])),
            0xd => f64::from(f32::from_be_bytes([c[0], c[1], c[2], c[3]])),
            _ => f64::from_be_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]),
        })
        .collect();
    Ok(Array { dims, values, integers: kind < 0xd })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_bytes_and_refuses_short_files() {
        let a = parse(&[0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6][..]).unwrap();
        assert_eq!((a.dims, a.values), (vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert!(parse(&[0, 0, 8, 1, 0, 0, 0, 3, 1, 2][..]).unwrap_err().contains("promises 3 bytes"));
        assert!(parse(&b"PK\x03\x04"[..]).is_err());
        assert!(parse(&[0, 0, 8, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff][..]).is_err());
    }
}
