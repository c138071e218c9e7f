//! Reading and writing model files.

mod onnx;
mod weights;

pub use weights::{Checkpoint, Saved, write_atomically};

use crate::error::{Error, Result};
use crate::ir::{Graph, text};
use std::collections::BTreeMap;
use std::path::Path;

/// A model: its forward graph and the values its file holds.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub graph: Graph,
    /// Parameters whose initial value is the file's, in f32.
    pub weights: BTreeMap<String, Vec<f32>>,
}

impl Model {
    /// Reads a `.mir` or `.onnx` file.
    pub fn read(path: &Path) -> Result<Model> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("mir") => {
                let source = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
                Ok(Model { graph: text::parse(&source, &path.display().to_string())?, weights: BTreeMap::new() })
            }
            Some("onnx") => onnx::read(path),
            _ => Err(Error::model(path, "models are .mir or .onnx files")),
        }
    }
}
