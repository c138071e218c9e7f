//! `.npy` and `.npz`.

use super::Array;
use crate::error::{Error, Result};
use npyz::{DType, NpyFile, TypeChar};
use std::io::Read;
use std::path::Path;

pub fn read_npy(path: &Path) -> Result<Array> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let held = file.metadata().map_err(Error::io("read", path))?.len();
    parse(std::io::BufReader::new(file), held).map_err(|e| Error::data(path, e))
}

/// Names of an archive's arrays, sorted.
pub fn names(path: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = open(path)?.array_names().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn open(path: &Path) -> Result<npyz::npz::NpzArchive<std::io::BufReader<std::fs::File>>> {
    npyz::npz::NpzArchive::open(path).map_err(|e| Error::data(path, format!("not a .npz file: {e}")))
}

pub fn read_npz(path: &Path, name: &str) -> Result<Array> {
    let mut archive = open(path)?;
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    match archive.by_name(name) {
        Ok(Some(npy)) => array(npy).map_err(|e| Error::data(path, format!("array `{name}`: {e}"))),
        Ok(None) => Err(Error::data(
            path,
            format!(
                "no array `{name}`; a dataset holds labels `y` and features `x` (or one array for each input), this file {}",
                names.join(", ")
            ),
        )),
        Err(e) => Err(Error::data(path, format!("array `{name}`: {e}"))),
    }
}

/// Reads an array from so many bytes.
fn parse(mut reader: impl Read, held: u64) -> Result<Array, String> {
    // Magic, version and the length of the header, which is allocated in one piece.
    let mut start = [0; 12];
    let not_npy = |e: std::io::Error| format!("not a .npy file: {e}");
    reader.read_exact(&mut start).map_err(not_npy)?;
    let [.., major, _, a, b, c, d] = start;
    let header = if major > 1 { u32::from_le_bytes([a, b, c, d]) } else { u32::from(u16::from_le_bytes([a, b])) };
    if u64::from(header) > held {
        return Err(format!("not a .npy file: its header of {header} bytes is longer than the file"));
    }
    array(NpyFile::new((&start[..]).chain(reader)).map_err(not_npy)?)
}

fn array<R: Read>(npy: NpyFile<R>) -> Result<Array, String> {
    let dims: Vec<usize> = npy.shape().iter().map(|&d| d as usize).collect();
    if dims.iter().try_fold(8usize, |n, &d| n.checked_mul(d)).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(format!("extents of {dims:?} are too large"));
    }
    if npy.order() != npyz::Order::C && dims.len() > 1 {
        return Err("the array is in Fortran order; save it with np.ascontiguousarray".into());
    }
    let DType::Plain(ty) = npy.dtype() else { return Err("structured arrays are not supported".into()) };
    macro_rules! read {
        ($t:ty, $f:expr) => {
            npy.into_vec::<$t>().map_err(|e| e.to_string())?.into_iter().map($f).collect()
        };
    }
    let values: Vec<f64> = match (ty.type_char(), ty.size_field()) {
        (TypeChar::Float, 4) => read!(f32, f64::from),
        (TypeChar::Float, 8) => read!(f64, |v| v),
        (TypeChar::Int, 1) => read!(i8, f64::from),
        (TypeChar::Int, 2) => read!(i16, f64::from),
        (TypeChar::Int, 4) => read!(i32, f64::from),
        (TypeChar::Int, 8) => read!(i64, |v| v as f64),
        (TypeChar::Uint, 1) => read!(u8, f64::from),
        (TypeChar::Uint, 2) => read!(u16, f64::from),
        (TypeChar::Uint, 4) => read!(u32, f64::from),
        _ => return Err(format!("elements of type {ty} are not supported; use float32, float64 or integers")),
    };
    Ok(Array { dims, values, integers: ty.type_char() != TypeChar::Float })
}
