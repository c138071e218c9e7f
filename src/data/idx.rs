//! The IDX format of MNIST: a big-endian header, then elements.

use super::Array;
use crate::error::{Error, Result};
use std::io::Read;
use std::path::Path;

pub fn read(path: &Path) -> Result<Array> {
    let raw = std::fs::read(path).map_err(Error::io("read", path))?;
    let bytes = if raw.starts_with(&[0x1f, 0x8b]) {
        let mut out = Vec::new();
        flate2::read::GzDecoder::new(&raw[..])
            .read_to_end(&mut out)
            .map_err(|e| Error::data(path, format!("damaged gzip data: {e}")))?;
        out
    } else {
        raw
    };
    parse(&bytes).map_err(|what| Error::data(path, what))
}

fn parse(bytes: &[u8]) -> Result<Array, String> {
    let not_idx = "this is not an IDX file; data files are IDX (optionally .gz), .npy, .npz and .csv";
    let [0, 0, kind, rank, rest @ ..] = bytes else { return Err(not_idx.into()) };
    let rank = usize::from(*rank);
    if rank == 0 || rank > 8 || rest.len() < 4 * rank {
        return Err(not_idx.into());
    }
    let (header, data) = rest.split_at(4 * rank);
    let dims: Vec<usize> =
        header.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]) as usize).collect();
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or(not_idx)?;
    let size = match kind {
        8 | 9 => 1,
        0xb => 2,
        0xc | 0xd => 4,
        0xe => 8,
        _ => return Err(not_idx.into()),
    };
    if count.checked_mul(size) != Some(data.len()) {
        return Err(format!("the header promises {count} elements of {size} bytes, but {} bytes follow", data.len()));
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
    Ok(Array { dims, values, integers: *kind < 0xd })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_bytes_and_refuses_short_files() {
        let a = parse(&[0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!((a.dims, a.values), (vec![2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert!(parse(&[0, 0, 8, 1, 0, 0, 0, 3, 1, 2]).unwrap_err().contains("3 elements"));
        assert!(parse(b"PK\x03\x04").is_err());
        assert!(parse(&[0, 0, 8, 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
