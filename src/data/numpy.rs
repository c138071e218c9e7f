//! `.npy` and `.npz`.

use super::Array;
use crate::error::{Error, Result};
use npyz::{DType, NpyFile, TypeChar};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use zip::ZipArchive;

/// Brackets within brackets in a header: those of a plain array are two deep. The library's parser takes twice the time for
/// each more.
const NESTED: usize = 4;

pub fn read_npy(path: &Path) -> Result<Array> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    let held = file.metadata().map_err(Error::io("read", path))?.len();
    parse(BufReader::new(file), held).map_err(|e| Error::data(path, e))
}

/// Names of an archive's arrays, sorted.
pub fn names(path: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = array_names(&open(path)?).map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

fn open(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    ZipArchive::new(BufReader::new(file)).map_err(|e| Error::data(path, format!("not a .npz file: {e}")))
}

fn array_names(archive: &ZipArchive<BufReader<File>>) -> impl Iterator<Item = &str> {
    archive.file_names().filter_map(|name| name.strip_suffix(".npy"))
}

pub fn read_npz(path: &Path, name: &str) -> Result<Array> {
    let mut archive = open(path)?;
    if !array_names(&archive).any(|n| n == name) {
        let names: Vec<&str> = array_names(&archive).collect();
        return Err(Error::data(
            path,
            format!(
                "no array `{name}`; a dataset holds labels `y` and features `x` (or one array for each input), this file {}",
                names.join(", ")
            ),
        ));
    }
    let bad = |e: String| Error::data(path, format!("array `{name}`: {e}"));
    let entry = archive.by_name(&format!("{name}.npy")).map_err(|e| bad(e.to_string()))?;
    let held = entry.size();
    parse(entry, held).map_err(bad)
}

/// Reads an array from so many bytes.
fn parse(mut reader: impl Read, held: u64) -> Result<Array, String> {
    let not_npy = |e: std::io::Error| format!("not a .npy file: {e}");
    // Magic, version and the length of the header: two bytes of it in version 1, four in later ones.
    let mut start = [0; 12];
    reader.read_exact(&mut start).map_err(not_npy)?;
    let [.., major, _, a, b, c, d] = start;
    let (header, read) = match major {
        1 => (u64::from(u16::from_le_bytes([a, b])), 2),
        _ => (u64::from(u32::from_le_bytes([a, b, c, d])), 0),
    };
    if header < read || header > held {
        return Err(format!("not a .npy file: its header has {header} bytes, and the file {held}"));
    }
    let mut text = Vec::new();
    reader.by_ref().take(header - read).read_to_end(&mut text).map_err(not_npy)?;
    if nesting(&text) > NESTED {
        return Err("not a .npy file: its header has brackets within brackets".into());
    }
    if !is_countable(&text) {
        return Err("not a .npy file: the extents in its header are too large".into());
    }
    array(NpyFile::new((&start[..]).chain(&text[..]).chain(reader)).map_err(not_npy)?)
}

/// How deep brackets lie within each other at most.
fn nesting(text: &[u8]) -> usize {
    let depths = text.iter().scan(0usize, |depth, c| {
        match c {
            b'(' | b'[' | b'{' => *depth += 1,
            b')' | b']' | b'}' => *depth = depth.saturating_sub(1),
            _ => {}
        }
        Some(*depth)
    });
    depths.max().unwrap_or(0)
}

/// Bits of the product of all whole numbers in a header, at most: the library multiplies extents unchecked.
const COUNTABLE: f64 = 62.0;

/// Is whatever a header's numbers multiply to less than 2^62? Sums and hexadecimal numbers, which its parser takes too, no
/// program writes.
fn is_countable(text: &[u8]) -> bool {
    let words = text.split(|c| !c.is_ascii_alphanumeric() && *c != b'_');
    let numbers = words.filter(|word| word.first().is_some_and(u8::is_ascii_digit));
    let bits = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok().map(|n: f64| n.max(1.0).log2());
    let total: Option<f64> = numbers.map(bits).sum();
    total.is_some_and(|bits| bits < COUNTABLE) && !text.contains(&b'+')
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
