//! Checkpoints: safetensors files, written under a temporary name and renamed, so that none is ever half written.

use super::weight::{Weight, Weights};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::format::Format;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A tensor as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Format of an element.
    pub format: Format,
    /// Extents, outermost first; none of a scalar.
    pub dims: Vec<usize>,
    /// Row-major, little-endian.
    pub bytes: Vec<u8>,
}

/// Tensors by name, and what they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Parameters, optimizer and scaler state.
    pub tensors: BTreeMap<String, Saved>,
    /// Of a run: `mantissa` (the version that wrote it), `model` (fingerprint), `model_name`, `epoch`, `seed`.
    pub metadata: BTreeMap<String, String>,
}

impl Saved {
    /// The tensor as models hold theirs.
    pub fn weight(&self) -> Weight {
        Weight::from_bytes(self.format, &self.dims, &self.bytes)
    }
}

fn dtype(format: Format) -> Dtype {
    match format {
        Format::F64 => Dtype::F64,
        Format::F32 | Format::Tf32 => Dtype::F32,
        Format::F16 => Dtype::F16,
        Format::Bf16 => Dtype::BF16,
        Format::F8E4M3 => Dtype::F8_E4M3,
        Format::F8E5M2 => Dtype::F8_E5M2,
        Format::I8 => Dtype::I8,
        Format::I16 => Dtype::I16,
        Format::I32 => Dtype::I32,
        Format::I64 => Dtype::I64,
        Format::U8 => Dtype::U8,
        Format::U16 => Dtype::U16,
        Format::U32 => Dtype::U32,
        Format::U64 => Dtype::U64,
        Format::Bool => Dtype::BOOL,
    }
}

impl Checkpoint {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written; what was there before is left.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, &self.to_bytes())
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, t)| {
            let view = TensorView::new(dtype(t.format), t.dims.clone(), &t.bytes).expect("bytes fill the shape");
            (name.clone(), view)
        });
        let metadata: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        safetensors::serialize(views.collect::<Vec<_>>(), Some(metadata)).expect("tensors fill their shapes")
    }

    /// The first tensor that holds a number that is not finite, and how many it holds.
    pub fn first_non_finite(&self) -> Option<(&str, usize)> {
        let floats = self.tensors.iter().filter(|(_, t)| t.format.is_float());
        let mut counted = floats.map(|(name, t)| {
            let values = t.weight().values::<f32>();
            (name.as_str(), values.iter().filter(|v| !v.is_finite()).count())
        });
        counted.find(|(_, bad)| *bad > 0)
    }

    /// The tensors alone.
    pub fn into_weights(self) -> Weights {
        self.tensors.iter().map(|(name, t)| (name.clone(), t.weight())).collect()
    }

    /// Refuses a checkpoint of another model than the one of this fingerprint.
    ///
    /// # Errors
    /// [`Error::Model`] naming `path` and the checkpoint's own model.
    pub fn require_model(&self, fingerprint: &str, name: &str, path: &Path) -> Result<()> {
        let meta = |key: &str| self.metadata.get(key).map_or("", String::as_str);
        if meta("model") == fingerprint {
            return Ok(());
        }
        let other = meta("model_name");
        Err(Error::model(path, format!("this checkpoint belongs to another model (`{other}`), not to `{name}`")))
    }

    /// Reads a checkpoint; a truncated or foreign file is an error that says so.
    ///
    /// # Errors
    /// A file that cannot be read, and those of [`Checkpoint::from_bytes`].
    pub fn read(path: &Path) -> Result<Checkpoint> {
        Checkpoint::from_bytes(&std::fs::read(path).map_err(Error::io("read", path))?, path)
    }

    /// Reads a checkpoint from memory; `path` is what errors name.
    ///
    /// # Errors
    /// [`Error::Model`] for bytes that are no whole safetensors file, and for element types that are not ours.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Checkpoint> {
        let bad = |e: safetensors::SafeTensorError| {
            Error::model(
                path,
                format!(
                    "not a whole safetensors checkpoint (truncated or damaged: {e}); copy it again, or start without it"
                ),
            )
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(bad)?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let file = SafeTensors::deserialize(bytes).map_err(bad)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let format = Format::ALL.into_iter().find(|f| dtype(*f) == view.dtype());
            let format = format.ok_or_else(|| {
                Error::model(path, format!("tensor `{name}` has the unsupported type {:?}", view.dtype()))
            })?;
            tensors.insert(name.to_owned(), Saved { format, dims: view.shape().to_vec(), bytes: view.data().to_vec() });
        }
        Ok(Checkpoint { tensors, metadata })
    }
}
