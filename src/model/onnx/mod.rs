//! Reading ONNX models, as `torch.onnx.export` writes them.
//!
//! `proto.rs` was generated once by `prost-build` from `onnx.proto` of the `onnx` 1.20.1 package and is committed, so
//! that building needs no protoc.

mod expected;
mod hints;
mod importer;
mod loops;
mod merged;
mod mixed;
mod narrow;
mod node;
mod operands;
mod ops;
mod order;
mod patch;
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
mod proto;
mod scopes;
mod sequences;
mod tensor;
mod trained;
mod write;

pub use mixed::Mixed;
pub use narrow::{NodeFormats, Wish, Wishes};
pub use patch::Written;
pub use tensor::read_tensor;
pub use write::to_onnx;

use super::{Bound, Purpose, Weight};
use crate::error::{Error, Result};
use crate::format::Format;
use prost::Message;
use proto::tensor_shape_proto::dimension::Value as DimValue;
use proto::type_proto::Value as TypeValue;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Opsets the importer knows; exporters write 18 to 23.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=25;

/// What is known of a model's inputs when it is imported.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    /// Extents, by the names the file gives them.
    pub sizes: &'a BTreeMap<String, usize>,
    /// Whole shapes, by input; they go before what the file says.
    pub shapes: &'a BTreeMap<String, Vec<usize>>,
    /// Values of inputs that are to be constants.
    pub fixed: &'a BTreeMap<String, Weight>,
    /// Nodes that run in narrow formats: what they read and write is rounded.
    pub formats: &'a NodeFormats,
}

impl Default for Given<'_> {
    /// Nothing is known.
    fn default() -> Self {
        static SIZES: BTreeMap<String, usize> = BTreeMap::new();
        static SHAPES: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        static FIXED: BTreeMap<String, Weight> = BTreeMap::new();
        static FORMATS: NodeFormats = BTreeMap::new();
        Given { sizes: &SIZES, shapes: &SHAPES, fixed: &FIXED, formats: &FORMATS }
    }
}

/// Some exporters keep weights in `Constant` nodes. Where a file has no other tensors to train, those are its initialisers.
fn constants_as_initialisers(model: &mut proto::ModelProto) {
    let is_float =
        |t: &proto::TensorProto| tensor::format_of(t.data_type()).is_ok_and(Format::is_float) && !t.dims.is_empty();
    let Some(graph) = model.graph.as_mut() else { return };
    if graph.initializer.iter().any(is_float) {
        return;
    }
    let held = |n: &proto::NodeProto| {
        let value = n.attribute.first().filter(|a| n.op_type() == "Constant" && a.name() == "value")?.t.as_ref();
        value.filter(|t| is_float(t)).cloned()
    };
    let mut moved = Vec::new();
    graph.node.retain(|n| match (held(n), n.output.first()) {
        (Some(t), Some(name)) => {
            moved.push(proto::TensorProto { name: Some(name.clone()), ..t });
            false
        }
        _ => true,
    });
    if !moved.is_empty() {
        // Before version 4, initialisers had to be inputs too.
        graph.initializer.extend(moved);
        model.ir_version = Some(model.ir_version().max(4));
    }
}

/// A model file, decoded but for what lies outside it.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    digest: [u8; 32],
    model: proto::ModelProto,
    opset: i64,
    /// Inputs that are constants.
    fixed: BTreeMap<String, Weight>,
}

impl File {
    /// Reads a file and checks that all its operations are known.
    pub fn read(path: &Path) -> Result<File> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let bad = |m: String| Error::model(path, m);
        let model = proto::ModelProto::decode(&bytes[..])
            .map_err(|e| bad(format!("not a whole ONNX file (truncated or damaged: {e}); copy or export it again")))?;
        let graph = model
            .graph
            .as_ref()
            .ok_or_else(|| bad("not an ONNX model: it has no graph (an empty or truncated file?)".into()))?;
        let opset = model.opset_import.iter().find(|o| matches!(o.domain(), "" | "ai.onnx")).map(|o| o.version());
        // A model of other domains alone names no version of ours.
        let opset = opset.unwrap_or(*OPSETS.end());
        if !OPSETS.contains(&opset) {
            return Err(bad(format!(
                "opset {opset} is outside {} to {}; export the model again with opset_version=20",
                OPSETS.start(),
                OPSETS.end()
            )));
        }
        order::unsupported(graph, &model.functions, &ops::is_known).map_err(bad)?;
        let mut model = model;
        constants_as_initialisers(&mut model);
        merged::separate(&mut model, &mut tensor::Files::beside(path));
        let (path, digest) = (path.to_owned(), Sha256::digest(&bytes).into());
        Ok(File { path, digest, model, opset, fixed: BTreeMap::new() })
    }

    /// The same with an input of one number a constant.
    ///
    /// # Errors
    /// Where there is no such input, or it holds more than a number.
    pub fn with_fixed(mut self, name: &str, value: f64) -> Result<File> {
        let bad = |what: String| Error::Request(format!("--value {name}: {what}"));
        let names = self.input_names();
        let input = self.graph().input.iter().find(|i| i.name() == name && names.contains(&i.name().to_owned()));
        let input = input.ok_or_else(|| bad(format!("the model has no such input; it has {}", names.join(", "))))?;
        let Some(TypeValue::TensorType(t)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
            return Err(bad("is not a tensor".into()));
        };
        let format = tensor::format_of(t.elem_type()).map_err(bad)?;
        let axes = t.shape.as_ref().map_or(0, |s| s.dim.len());
        if t.shape.iter().flat_map(|s| &s.dim).any(|d| !matches!(d.value, Some(DimValue::DimValue(1)))) {
            return Err(bad("an input that is more than one number cannot be given so".into()));
        }
        let weight = Weight::from_values(format, &vec![1; axes], &[value]);
        let text = format!("{name}={value}");
        self.digest = Sha256::new_with_prefix(self.digest).chain_update(text).finalize().into();
        self.fixed.insert(name.to_owned(), weight);
        Ok(self)
    }

    fn graph(&self) -> &proto::GraphProto {
        self.model.graph.as_ref().expect("checked when the file was read")
    }

    /// Names of the inputs that are no initialisers, in order.
    pub fn input_names(&self) -> Vec<String> {
        let g = self.graph();
        let initial = |name: &str| g.initializer.iter().any(|t| t.name() == name);
        let given = |name: &str| initial(name) || self.fixed.contains_key(name);
        g.input.iter().map(|i| i.name()).filter(|n| !given(n)).map(str::to_owned).collect()
    }

    /// Names of the extents that inputs leave open, sorted.
    pub fn free_dims(&self) -> Vec<String> {
        let mut names = Vec::new();
        for input in &self.graph().input {
            let Some(TypeValue::TensorType(t)) = input.r#type.as_ref().and_then(|t| t.value.as_ref()) else { continue };
            let dims = t.shape.iter().flat_map(|s| s.dim.iter().enumerate());
            names.extend(dims.filter_map(|(axis, d)| importer::open_extent(input.name(), axis, d)));
        }
        names.sort();
        names.dedup();
        names
    }

    /// What somebody who is about to train the model should know.
    pub fn hints(&self) -> Vec<String> {
        hints::hints(self.graph(), &mut tensor::Files::beside(&self.path))
    }

    pub fn digest(&self) -> sha2::digest::Output<Sha256> {
        self.digest.into()
    }

    /// The model as a graph of ours, for these sizes.
    pub fn import(&self, given: Given<'_>, purpose: Purpose<'_>) -> Result<Bound> {
        importer::import(self, given, purpose).map_err(|e| match e {
            Error::Graph(m) => Error::model(&self.path, m),
            e => e,
        })
    }
}
