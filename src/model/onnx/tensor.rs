//! Tensors of an ONNX file: inline, or in a file beside it, which is mapped.

use super::proto::TensorProto;
use super::proto::tensor_proto::{DataLocation, DataType};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::Weight;
use memmap2::Mmap;
use prost::Message;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of external data, mapped once.
pub struct Files {
    dir: PathBuf,
    maps: HashMap<PathBuf, Arc<Mmap>>,
}

/// Reads a file that holds one serialised tensor (`.pb`), as ONNX's own tests have them.
///
/// # Errors
/// A file that cannot be read or is no `TensorProto`, and a tensor that is damaged or of an unsupported element type.
pub fn read_tensor(path: &Path) -> Result<Weight> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let tensor =
        TensorProto::decode(&bytes[..]).map_err(|e| Error::model(path, format!("not a serialised tensor: {e}")))?;
    Files::beside(path).decode(&tensor).map_err(|e| Error::model(path, e))
}

/// Formats and the element types that ONNX has for them. What is f32 in memory is a float.
const CODES: [(Format, DataType); 16] = [
    (Format::F64, DataType::Double),
    (Format::F32, DataType::Float),
    (Format::Tf32, DataType::Float),
    (Format::F16, DataType::Float16),
    (Format::Bf16, DataType::Bfloat16),
    (Format::F8E4M3, DataType::Float8e4m3fn),
    (Format::F8E5M2, DataType::Float8e5m2),
    (Format::I8, DataType::Int8),
    (Format::I16, DataType::Int16),
    (Format::I32, DataType::Int32),
    (Format::I64, DataType::Int64),
    (Format::U8, DataType::Uint8),
    (Format::U16, DataType::Uint16),
    (Format::U32, DataType::Uint32),
    (Format::U64, DataType::Uint64),
    (Format::Bool, DataType::Bool),
];

/// The format of an ONNX element type.
///
/// # Errors
/// That there is no such type, or no format for it.
pub fn format_of(data_type: i32) -> Result<Format, String> {
    let ty = DataType::try_from(data_type).map_err(|_| format!("unknown element type {data_type}"))?;
    let found = CODES.iter().find(|(_, code)| *code == ty);
    found.map(|(format, _)| *format).ok_or_else(|| format!("the element type {} is not supported", ty.as_str_name()))
}

/// The element type of a format: the inverse of [`format_of`].
pub fn code_of(format: Format) -> i32 {
    CODES.iter().find(|(f, _)| *f == format).map_or(DataType::Undefined, |(_, code)| *code) as i32
}

impl Files {
    pub fn beside(model: &Path) -> Files {
        Files { dir: model.parent().unwrap_or(Path::new(".")).to_owned(), maps: HashMap::new() }
    }

    pub fn decode(&mut self, t: &TensorProto) -> Result<Weight, String> {
        let dims: Vec<usize> = t
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| format!("extent {d} is negative")))
            .collect::<Result<_, _>>()?;
        let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("the shape is too large")?;
        let format = format_of(t.data_type())?;
        let size =
            count.checked_mul(format.bytes()).filter(|&n| n <= isize::MAX as usize).ok_or("the shape is too large")?;
        if t.data_location() == DataLocation::External {
            return self.external(t, format, &dims, size);
        }
        let found = |n: usize| format!("the shape {dims:?} needs {count} elements, but {n} are there");
        if t.raw_data.as_ref().is_some_and(|r| !r.is_empty()) || count == 0 {
            let raw = t.raw_data();
            return if raw.len() == size {
                Ok(Weight::from_bytes(format, &dims, raw))
            } else {
                Err(found(raw.len() / format.bytes()))
            };
        }
        let values: Vec<f64> = match format {
            Format::F32 => t.float_data.iter().map(|&v| f64::from(v)).collect(),
            Format::F64 => t.double_data.clone(),
            // Whole numbers of 64 bits do not all fit the f64 in between.
            Format::I64 if t.int64_data.len() == count => {
                return Ok(Weight::from_bytes(format, &dims, bytemuck::cast_slice(&t.int64_data)));
            }
            Format::U64 if t.uint64_data.len() == count => {
                return Ok(Weight::from_bytes(format, &dims, bytemuck::cast_slice(&t.uint64_data)));
            }
            Format::I64 => t.int64_data.iter().map(|&v| v as f64).collect(),
            Format::U32 | Format::U64 => t.uint64_data.iter().map(|&v| v as f64).collect(),
            f if f.is_low() => t.int32_data.iter().map(|&v| f.decode(v as u16)).collect(),
            _ => t.int32_data.iter().map(|&v| f64::from(v)).collect(),
        };
        if values.len() != count {
            return Err(found(values.len()));
        }
        Ok(Weight::from_values(format, &dims, &values))
    }

    fn external(&mut self, t: &TensorProto, format: Format, dims: &[usize], need: usize) -> Result<Weight, String> {
        let key = |k: &str| t.external_data.iter().find(|e| e.key() == k).map(|e| e.value().to_owned());
        let location = key("location").ok_or("external data without a location")?;
        let relative = Path::new(&location);
        if relative.is_absolute() || relative.components().any(|c| c == std::path::Component::ParentDir) {
            return Err(format!("external data must lie beside the model, not at {location}"));
        }
        let path = self.dir.join(relative);
        let number = |k: &str, default: usize| {
            key(k).map_or(Ok(default), |v| v.parse::<usize>().map_err(|_| format!("external data has a bad {k}")))
        };
        let (offset, length) = (number("offset", 0)?, number("length", need)?);
        if !self.maps.contains_key(&path) {
            let file = std::fs::File::open(&path).map_err(|e| {
                format!(
                    "its data is in {}, which cannot be opened ({e}); copy that file beside the model",
                    path.display()
                )
            })?;
            // SAFETY: the map is only read; a file that shrinks meanwhile would fault, as with every memory-mapped input.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| format!("{} cannot be mapped: {e}", path.display()))?;
            self.maps.insert(path.clone(), Arc::new(map));
        }
        let map = &self.maps[&path];
        if length != need {
            return Err(format!("{length} bytes of external data for a tensor of {need}"));
        }
        let end = offset
            .checked_add(length)
            .ok_or_else(|| format!("{}: the offset {offset} is out of range", path.display()))?;
        if end > map.len() {
            return Err(format!(
                "{} has {} bytes, but the tensor lies at {offset} to {end}; copy the whole file beside the model",
                path.display(),
                map.len()
            ));
        }
        Ok(Weight::mapped(format, dims, map.clone(), offset..end))
    }
}
