//! Reading and writing model files.

mod checkpoint;
mod modes;
mod onnx;
mod weight;

pub use checkpoint::{Checkpoint, Saved};
pub use modes::{Count, Frozen, Layers, Modes};
pub use onnx::{Mixed, NodeFormats, Wish, Wishes, Written, read_tensor};
pub use weight::{Weight, Weights};

use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, Op, Output, Role, text};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// A model as its file has it. Sizes that it leaves open are given when it is bound.
#[derive(Clone, Debug)]
pub struct Model {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Graph(Box<Graph>),
    Onnx(Arc<onnx::File>),
}

/// What a bound graph is for: some operations (dropout, batch norm) act differently in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// As a framework trains it, whatever the file's attributes say, but for what is frozen.
    Training(&'a Modes),
    /// Without dropout, with running statistics.
    Inference,
    /// As the attributes of the file's nodes say: what the ONNX specification has the file compute.
    AsWritten,
}

impl Purpose<'static> {
    /// Training with nothing frozen.
    pub const TRAINING: Purpose<'static> = Purpose::Training(&Modes::ALL_TRAINED);
}

/// A model with all its sizes known: its forward graph, and the values its file holds.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// The forward graph, no size left open.
    pub graph: Graph,
    /// By the names of parameters and states in the graph; a text model has none.
    pub weights: Weights,
    /// What the tensors of an ONNX file's main graph are in the graph, by name.
    pub tensors: BTreeMap<String, Stands>,
    /// Layers that act in training otherwise than in inference.
    pub layers: Layers,
}

/// What a tensor of a file is in a bound graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Stands {
    /// The value it is; none if it is a constant that the graph does without.
    pub value: Option<String>,
    /// The format of its register.
    pub format: Format,
}

impl Bound {
    /// Is a tensor of the file one of f32 numbers?
    pub fn is_f32(&self, tensor: &str) -> bool {
        self.tensors.get(tensor).is_some_and(|t| t.format == Format::F32)
    }
}

/// Outputs that no label is needed for.
pub fn unlabelled_outputs(graph: &Graph) -> Vec<Output> {
    let mut needs_label = vec![false; graph.len()];
    for id in graph.ids() {
        let label = matches!(graph.op(id), crate::ir::Op::Input { label: true, .. });
        needs_label[id.index()] = label || graph.inputs(id).iter().any(|i| needs_label[i.index()]);
    }
    graph.outputs().iter().filter(|o| o.role == Role::Output && !needs_label[o.node.index()]).cloned().collect()
}

impl Model {
    /// Reads a `.mir` or `.onnx` file.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged, another extension, and operations or opsets that are not known.
    pub fn read(path: &Path) -> Result<Model> {
        let source = match path.extension().and_then(|e| e.to_str()) {
            Some("mir") => {
                let source = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
                Source::Graph(Box::new(text::parse(&source, &path.display().to_string())?))
            }
            Some("onnx") => Source::Onnx(Arc::new(onnx::File::read(path)?)),
            _ => return Err(Error::model(path, "models are .mir or .onnx files")),
        };
        Ok(Model { source })
    }

    /// The same with an input of one number a constant, as what a file decides by (a sampling rate, for one) must be.
    ///
    /// # Errors
    /// Where there is no such input, it holds more than a number, or the model is no ONNX file.
    pub fn with_fixed(self, name: &str, value: f64) -> Result<Model> {
        let Source::Onnx(file) = self.source else {
            return Err(Error::Request(format!(
                "--value {name}: inputs of a text model are made constants in its text"
            )));
        };
        let file = Arc::try_unwrap(file).map_err(|_| Error::Request(format!("--value {name}: the model is in use")))?;
        Ok(Model { source: Source::Onnx(Arc::new(file.with_fixed(name, value)?)) })
    }

    /// A model made in memory.
    pub fn from_graph(graph: Graph) -> Model {
        Model { source: Source::Graph(Box::new(graph)) }
    }

    /// Names of the sizes that must be given, sorted.
    pub fn free_dims(&self) -> Vec<String> {
        match &self.source {
            Source::Graph(g) => g.free_dims(),
            Source::Onnx(file) => file.free_dims(),
        }
    }

    /// The graph for these sizes. A size for the batch may be given to a model that has none.
    ///
    /// # Errors
    /// [`Error::Request`] where sizes are missing, or given for extents that the model does not have.
    pub fn bind(&self, sizes: &BTreeMap<String, usize>, purpose: Purpose) -> Result<Bound> {
        self.require(sizes)?;
        match &self.source {
            Source::Graph(g) => Ok(Bound { graph: g.bind(sizes)?, ..Bound::default() }),
            Source::Onnx(file) => file.import(onnx::Given { sizes, ..onnx::Given::default() }, purpose),
        }
    }

    fn require(&self, sizes: &BTreeMap<String, usize>) -> Result<()> {
        let free = self.free_dims();
        let quoted = |names: &[&String]| names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        let flag = |name: &String| if name == "batch" { "--batch 64".to_owned() } else { format!("--dim {name}=64") };
        let missing: Vec<&String> = free.iter().filter(|name| !sizes.contains_key(*name)).collect();
        if !missing.is_empty() {
            let (sizes, are) = if missing.len() == 1 { ("size", "is") } else { ("sizes", "are") };
            let flags: Vec<String> = missing.iter().copied().map(flag).collect();
            return Err(Error::Request(format!(
                "the model's {sizes} {} {are} not bound; give a value to each, as in {}",
                quoted(&missing),
                flags.join(" ")
            )));
        }
        if let Some(name) = sizes.keys().find(|name| *name != "batch" && !free.contains(name)) {
            let has = match free.iter().collect::<Vec<_>>() {
                free if free.is_empty() => "its shapes are fixed".to_owned(),
                free => format!("it has {}", quoted(&free)),
            };
            return Err(Error::Request(format!("the model has no size `{name}`; {has}")));
        }
        Ok(())
    }

    /// The graph for inference of an ONNX model some nodes of which run in narrow formats, as a runtime would compute it.
    ///
    /// # Errors
    /// A model that is no ONNX file, missing sizes, and nodes that do not type, naming the node.
    pub fn bind_mixed(&self, sizes: &BTreeMap<String, usize>, formats: &NodeFormats) -> Result<Bound> {
        self.onnx()?.import(onnx::Given { sizes, formats, ..onnx::Given::default() }, Purpose::Inference)
    }

    /// Which nodes of an ONNX model run in narrow formats by a plan; `bound` is what it was bound as.
    ///
    /// # Errors
    /// For models of other kinds, and for those that are in mixed precision already.
    pub fn node_formats(&self, bound: &Bound, wishes: Wishes) -> Result<NodeFormats> {
        let file = self.onnx()?;
        file.require_wide()?;
        let formats = file.node_formats(bound, wishes)?;
        file.require_opset(&formats)?;
        Ok(formats)
    }

    /// An ONNX model with some nodes in narrow formats. `notes` go into its metadata; `data_name` is what a file of values
    /// will be called, where they are too many for one.
    ///
    /// # Errors
    /// A model that is no ONNX file, or whose external data cannot be read.
    pub fn mixed(
        &self,
        bound: &Bound,
        formats: &NodeFormats,
        notes: &[(String, String)],
        data_name: &str,
    ) -> Result<Mixed> {
        self.onnx()?.mixed(bound, formats, notes, data_name)
    }

    /// The file of an ONNX model.
    fn onnx(&self) -> Result<&onnx::File> {
        match &self.source {
            Source::Onnx(file) => Ok(file),
            Source::Graph(g) => Err(Error::Request(format!(
                "model `{}` is no ONNX file, and its parameters have no values; write one with `mantissa export` and plan that",
                g.name
            ))),
        }
    }

    /// An ONNX model for inputs of these shapes, with some of them fixed to values (a shape that the model takes as an
    /// input, for one). Other models ignore both.
    ///
    /// # Errors
    /// Open sizes of a text model, and nodes of an ONNX model that do not type, naming the node.
    pub fn bind_shaped(
        &self,
        shapes: &BTreeMap<String, Vec<usize>>,
        purpose: Purpose,
        fixed: &BTreeMap<String, Weight>,
    ) -> Result<Bound> {
        match &self.source {
            Source::Graph(_) => self.bind(&BTreeMap::new(), purpose),
            Source::Onnx(file) => file.import(onnx::Given { shapes, fixed, ..onnx::Given::default() }, purpose),
        }
    }

    /// The model as an ONNX file with these values for its parameters and states, as it acts in inference: of an ONNX
    /// model its own file; of another, the outputs that no label is needed for. `data_name` is what a file of values will
    /// be called, where they are too many for one.
    ///
    /// # Errors
    /// Outputs that all need labels, values of other shapes than the model's, and operations that ONNX does not have.
    pub fn to_onnx(
        &self,
        values: &Weights,
        sizes: &BTreeMap<String, usize>,
        prediction: Option<&str>,
        data_name: &str,
    ) -> Result<onnx::Written> {
        let graph = match &self.source {
            Source::Onnx(file) => return file.with_values(values, data_name),
            Source::Graph(g) => g.map_ops(|op| op.bind(sizes))?,
        };
        let mut outputs = unlabelled_outputs(&graph);
        if let Some(node) =
            prediction.and_then(|name| graph.find(name)).filter(|n| outputs.iter().all(|o| o.node != *n))
        {
            outputs.insert(0, Output { name: graph.name_of(node).to_owned(), role: Role::Output, node });
        }
        if outputs.is_empty() {
            return Err(Error::Request("every output of the model needs its label, and it has no prediction".into()));
        }
        let graph = graph.prune(&outputs)?;
        let graph = graph.spelled(|id| matches!(graph.op(id), Op::Attention { .. }))?;
        Ok(onnx::Written { model: onnx::to_onnx(&graph, values)?, data: None })
    }

    /// Do the graphs for training and for inference differ?
    pub fn has_modes(&self) -> bool {
        matches!(self.source, Source::Onnx(_))
    }

    /// What the file does not say, but shows signs of, and what to do about it: sentences for somebody who is about to train
    /// the model.
    pub fn hints(&self) -> Vec<String> {
        match &self.source {
            Source::Graph(_) => Vec::new(),
            Source::Onnx(file) => file.hints(),
        }
    }

    /// Names of the inputs, in order.
    pub fn input_names(&self) -> Vec<String> {
        match &self.source {
            Source::Graph(g) => {
                let input = |id: &crate::ir::NodeId| matches!(g.op(*id), crate::ir::Op::Input { .. });
                g.sources().filter(input).map(|id| g.name_of(id).to_owned()).collect()
            }
            Source::Onnx(file) => file.input_names(),
        }
    }

    /// Identifies the model, whatever its sizes: SHA-256 of its text or file, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let digest = match &self.source {
            Source::Graph(g) => Sha256::digest(text::print(g)),
            Source::Onnx(file) => file.digest(),
        };
        digest.iter().map(|b| format!("{b:02x}")).collect()
    }
}
