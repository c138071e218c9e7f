//! Reading ONNX models, as `torch.onnx.export` writes them.
//!
//! `proto.rs` was generated once by `prost-build` from `onnx.proto` of the `onnx` 1.20.1 package and is committed, so
//! that building needs no protoc.

mod graph;
mod ops;
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
mod proto;
mod tensor;

use super::Model;
use crate::error::{Error, Result};
use prost::Message;
use std::path::Path;

/// Opsets the importer knows; exporters write 18 to 23.
const OPSETS: std::ops::RangeInclusive<i64> = 13..=23;

/// Reads a model file; tensors in external files are memory-mapped.
pub fn read(path: &Path) -> Result<Model> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let bad = |m: String| Error::model(path, m);
    let model = proto::ModelProto::decode(&bytes[..])
        .map_err(|e| bad(format!("not a whole ONNX file (truncated or damaged: {e}); copy or export it again")))?;
    let graph = model
        .graph
        .as_ref()
        .ok_or_else(|| bad("not an ONNX model: it has no graph (an empty or truncated file?)".into()))?;
    let opset = model.opset_import.iter().find(|o| matches!(o.domain(), "" | "ai.onnx")).map_or(0, |o| o.version());
    if !OPSETS.contains(&opset) {
        return Err(bad(format!(
            "opset {opset} is outside {} to {}; export the model again with opset_version=20",
            OPSETS.start(),
            OPSETS.end()
        )));
    }
    graph::import(graph, path)
}
