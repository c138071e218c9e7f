//! From an ONNX graph to ours: names, initialisers, functions, and folding of what is known.
//!
//! A value is *known* if its elements are: shapes, axes, index tables, and what is computed from them. A node with known
//! inputs alone is imported into a graph of its own and evaluated there, so exporters' shape arithmetic never reaches
//! the model's graph.

mod values;

use super::expected::Chances;
use super::narrow::NodeFormats;
use super::node::Node;
use super::operands::{key, operands};
use super::order::{describe, function_of, ordered};
use super::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use super::proto::type_proto::Value as TypeValue;
use super::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, ValueInfoProto};
use super::tensor::{Files, format_of};
use super::trained::{Notes, module_of};
use super::{File, Given, ops, sequences};
use crate::error::{Error, Result};
use crate::format::{Format, Overflow};
use crate::ir::{Graph, NodeId, Op, Role, Shape, Tensor, Type, evaluate};
use crate::model::{Bound, Layers, Purpose, Weight, Weights};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

/// Initialisers of at most this many elements are known; larger ones are looked at only by the kernels that read them.
const SMALL: usize = 1 << 14;
/// Known results are computed up to this size.
pub(super) const FOLDED: usize = 1 << 22;
/// Nodes that a file may come to once its functions are spelled out.
const NODES: usize = 1 << 20;

/// A tensor whose elements are known.
#[derive(Clone, Debug)]
pub struct Known {
    pub tensor: Tensor,
    pub format: Format,
}

/// A tensor of the file under the name that it has there, whatever others it goes by.
#[derive(Debug)]
pub struct Initialiser {
    name: String,
    weight: Weight,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Value {
    Node(NodeId),
    Known(Rc<Known>),
    /// An initialiser that nobody has read yet.
    Weight(Rc<Initialiser>),
    /// A sequence of tensors.
    Sequence(Rc<[Value]>),
}

impl Value {
    /// A known whole number.
    pub(super) fn whole(v: f64) -> Value {
        Value::Known(Rc::new(Known { tensor: Tensor::scalar(v), format: Format::I64 }))
    }
}

/// A graph under construction.
pub struct Importer<'a> {
    pub graph: Graph,
    pub purpose: Purpose<'a>,
    /// Layers that act otherwise in training, counted.
    pub layers: Layers,
    pub opset: i64,
    functions: &'a [FunctionProto],
    files: Files,
    pub(super) values: HashMap<String, Value>,
    weights: Weights,
    /// Calls of functions that are being imported.
    pub(super) depth: usize,
    /// Nodes imported so far.
    imported: usize,
    pub(super) chances: Chances,
    /// Nodes that stand for known tensors.
    known_nodes: HashMap<NodeId, Rc<Known>>,
    /// The other way round.
    node_of_known: HashMap<*const Known, NodeId>,
    /// Names that must not be trained: statistics, and constants that the exporter made.
    frozen: HashSet<String>,
    /// What the exporter noted about parameters, if anything.
    notes: Option<Notes<'a>>,
    /// Nodes that run in narrow formats.
    formats: &'a NodeFormats,
}

pub fn import(file: &File, given: Given<'_>, purpose: Purpose<'_>) -> Result<Bound> {
    let bad = |m: String| Error::model(&file.path, m);
    let proto = file.graph();
    // Exporters name every graph `main_graph`; the file's name says more.
    let name = file.path.file_stem().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let mut im = Importer {
        functions: &file.model.functions,
        files: Files::beside(&file.path),
        frozen: frozen(proto),
        notes: Notes::read(proto),
        ..Importer::empty(Graph::new(name), purpose, file.opset, given.formats)
    };
    im.initialisers(proto).map_err(bad)?;
    for input in proto.input.iter().filter(|i| !i.name().is_empty()) {
        if im.values.contains_key(input.name()) {
            continue;
        }
        let value = match given.fixed.get(input.name()).or(file.fixed.get(input.name())) {
            Some(w) => Value::Known(Rc::new(known(w))),
            None => {
                let ty = input_type(input, given).map_err(|e| bad(format!("input `{}`: {e}", input.name())))?;
                Value::Node(im.graph.add_named(input.name(), Op::Input { label: false, ty, copy_of: None }, &[])?)
            }
        };
        im.values.insert(input.name().to_owned(), value);
    }
    im.nodes(&proto.node).map_err(bad)?;
    (im.graph.origin, im.graph.module) = (None, None);
    if proto.output.is_empty() {
        return Err(bad("has no outputs, so there is nothing to compute or to train".into()));
    }
    for o in &proto.output {
        let id = im.node_of(o.name()).map_err(|e| bad(format!("output `{}`: {e}", o.name())))?;
        im.graph.add_output(o.name(), Role::Output, id);
    }
    let tensors = im.values.iter().map(|(name, value)| (name.clone(), im.stands_for(value))).collect();
    Ok(Bound { graph: im.graph, weights: im.weights, tensors, layers: im.layers })
}

/// Initialisers that are no parameters: running statistics, buffers by the names frameworks give them, and constants.
pub(super) fn frozen(proto: &GraphProto) -> HashSet<String> {
    const BUFFERS: [&str; 6] =
        ["running_mean", "running_var", "num_batches_tracked", "inv_freq", "position_ids", "relative_position_index"];
    let mut out: HashSet<String> = HashSet::new();
    for node in proto.node.iter().filter(|n| n.op_type() == "BatchNormalization") {
        out.extend(node.input.iter().skip(3).cloned());
    }
    for t in &proto.initializer {
        let last = t.name().rsplit('.').next().unwrap_or("");
        if BUFFERS.contains(&last) {
            out.insert(t.name().to_owned());
        }
    }
    out
}

/// A name that an exporter made up, as in `val_12` or `onnx::Add_3`.
fn is_machine_made(name: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("val_").is_some_and(digits)
        || ["_tensor_constant", "scalar_tensor", "onnx::", "Constant", "/", "_val_"].iter().any(|p| name.starts_with(p))
}

fn known(w: &Weight) -> Known {
    Known { tensor: Tensor::new(&w.dims, w.values::<f64>()), format: w.format }
}

fn input_type(v: &ValueInfoProto, given: Given) -> Result<Type, String> {
    let Some(TypeValue::TensorType(t)) = v.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err("is not a tensor".into());
    };
    if let Some(dims) = given.shapes.get(v.name()) {
        return Ok(Type::new(Shape::of(dims), format_of(t.elem_type())?));
    }
    let shape = t.shape.as_ref().ok_or("has no shape; export with input shapes")?;
    let dims = shape.dim.iter().enumerate().map(|(axis, d)| match open_extent(v.name(), axis, d) {
        None => Ok(if let Some(DimValue::DimValue(n)) = d.value { n as usize } else { 0 }),
        Some(name) => given.sizes.get(&name).copied().ok_or_else(|| {
            format!("the size `{name}` of axis {axis} is not bound; give it a value, as in --dim {name}=64")
        }),
    });
    Ok(Type::new(Shape::of(&dims.collect::<Result<Vec<_>, _>>()?), format_of(t.elem_type())?))
}

/// The name that the size of an axis is bound by, where a file leaves it open: its own, or one made of the input's. Runtimes
/// write open sizes as -1 too, and an exporter that has no name for the first axis means the batch.
pub(super) fn open_extent(input: &str, axis: usize, d: &Dimension) -> Option<String> {
    match &d.value {
        Some(DimValue::DimValue(n)) if *n >= 0 => None,
        // PaddlePaddle's exporter calls every open extent `?`.
        Some(DimValue::DimParam(name)) if !name.is_empty() && name != "?" => Some(name.clone()),
        _ if axis == 0 => Some("batch".into()),
        _ => Some(format!("{input}.{axis}")),
    }
}

fn plain(e: Error) -> String {
    match e {
        Error::Graph(m) => m,
        e => e.to_string(),
    }
}

impl<'a> Importer<'a> {
    /// Nothing imported yet, of no file.
    fn empty(graph: Graph, purpose: Purpose<'a>, opset: i64, formats: &'a NodeFormats) -> Importer<'a> {
        Importer {
            graph,
            purpose,
            layers: Layers::default(),
            opset,
            functions: &[],
            files: Files::beside(Path::new("")),
            values: HashMap::new(),
            weights: Weights::new(),
            depth: 0,
            imported: 0,
            chances: Chances::default(),
            known_nodes: HashMap::new(),
            node_of_known: HashMap::new(),
            frozen: HashSet::new(),
            notes: None,
            formats,
        }
    }

    pub(super) fn initialisers(&mut self, proto: &GraphProto) -> Result<(), String> {
        for t in &proto.initializer {
            let w = self.files.decode(t).map_err(|e| format!("initialiser `{}`: {e}", t.name()))?;
            let constant = !w.format.is_float() || self.is_constant(t.name(), &w);
            let value = if constant && w.elements() <= SMALL {
                Value::Known(Rc::new(known(&w)))
            } else {
                if constant {
                    self.frozen.insert(t.name().to_owned());
                }
                Value::Weight(Rc::new(Initialiser { name: t.name().to_owned(), weight: w }))
            };
            self.values.insert(t.name().to_owned(), value);
        }
        Ok(())
    }

    /// Is a floating-point initialiser a constant that the exporter made, rather than a parameter or a buffer?
    fn is_constant(&self, name: &str, w: &Weight) -> bool {
        match &self.notes {
            Some(notes) => !notes.trains(name) && !self.frozen.contains(name),
            None => is_machine_made(name) && (w.dims.is_empty() || (w.elements() <= SMALL && !w.varies())),
        }
    }

    /// Imports nodes, whatever order they stand in.
    pub(super) fn nodes(&mut self, nodes: &[NodeProto]) -> Result<(), String> {
        let order = ordered(nodes, &|name| self.values.contains_key(name))?;
        // Nodes of a function or a branch that say nothing are of the module of the node that calls it.
        let caller = self.graph.module.clone();
        for node in order {
            let place = describe(node);
            self.graph.origin = Some(place.clone());
            self.graph.module = module_of(node).or_else(|| caller.clone());
            if node.output.is_empty() {
                return Err(format!("{place}: has no output"));
            }
            let format = self.formats.get(key(node)).copied();
            let outputs = match format {
                Some(f) => self.import_rounded(node, f),
                None => self.import_node(node),
            };
            let outputs = outputs.map_err(|e| {
                // Messages of the graph name the place already.
                if e.starts_with(&place) { e } else { format!("{place}: {e}") }
            })?;
            for (name, value) in node.output.iter().zip(outputs).filter(|(n, _)| !n.is_empty()) {
                if let Value::Node(id) = value
                    && self.graph.is_auto_named(id)
                {
                    self.graph.rename(id, name);
                }
                if self.values.insert(name.clone(), value).is_some() {
                    return Err(format!("{place}: defines `{name}`, which is defined already"));
                }
            }
        }
        self.graph.module = caller;
        Ok(())
    }

    fn import_node(&mut self, node: &NodeProto) -> Result<Vec<Value>, String> {
        self.imported += 1;
        if self.imported > NODES {
            return Err(format!("the file comes to more than {NODES} nodes once its functions are spelled out"));
        }
        if let Some(f) = function_of(self.functions, node) {
            return self.call(f, node);
        }
        match node.op_type() {
            "Constant" => return Ok(vec![self.constant(node)?]),
            "Shape" | "Size" => return self.shape(node).map(|v| vec![v]),
            "If" => return self.choose(node),
            "Loop" => return self.unrolled(node),
            op if sequences::OPS.contains(&op) => return self.sequence(node).map(|v| vec![v]),
            // A copy of a known value is known, and a copy of a weight is that weight. A map from classes to probabilities is
            // the probabilities.
            "Identity" | "ZipMap" => {
                let value = self.value(node.input.first().map_or("", String::as_str))?;
                return Ok(vec![self.own_statistic(value, node.output.first().map_or("", String::as_str))]);
            }
            _ => {}
        }
        let all_known = node.input.iter().filter(|i| !i.is_empty()).all(|i| self.known(i).is_some());
        if all_known
            && !ops::is_random(node.op_type())
            && let Some(outputs) = self.fold(node)?
        {
            return Ok(outputs);
        }
        let outputs = ops::import(&mut Node::new(self, node))?;
        Ok(self.expected(node, outputs)?.into_iter().map(Value::Node).collect())
    }

    /// Exporters write running statistics that are equal once, with copies for the other layers; but each layer moves its own.
    fn own_statistic(&self, value: Value, name: &str) -> Value {
        match value {
            Value::Weight(i) if self.frozen.contains(name) => {
                Value::Weight(Rc::new(Initialiser { name: name.to_owned(), weight: i.weight.clone() }))
            }
            value => value,
        }
    }

    /// Imports a node that runs in a narrow format: its operands and results are rounded to it.
    fn import_rounded(&mut self, node: &NodeProto, format: Format) -> Result<Vec<Value>, String> {
        let mut wide = Vec::new();
        for name in operands(node) {
            let rounded = match self.values.get(name) {
                Some(Value::Known(k)) if k.format == Format::F32 => {
                    let round = |&x: &f64| format.round(x, Overflow::Ieee);
                    let data = k.tensor.data.iter().map(round).collect();
                    Value::Known(Rc::new(Known { tensor: Tensor::new(&k.tensor.dims, data), format: k.format }))
                }
                Some(Value::Known(_)) => continue,
                _ => {
                    let id = self.node_of(name)?;
                    if self.graph.ty(id).format != Format::F32 {
                        continue;
                    }
                    Value::Node(self.graph.add(Op::Convert(format), &[id]).map_err(plain)?)
                }
            };
            if let Some(before) = self.values.insert(name.to_owned(), rounded) {
                wide.push((name.to_owned(), before));
            }
        }
        let outputs = self.import_node(node);
        // In reverse: a node may read a tensor twice.
        self.values.extend(wide.into_iter().rev());
        let round = |value| match value {
            Value::Node(id) if self.graph.ty(id).format == Format::F32 => {
                self.graph.add(Op::Convert(format), &[id]).map(Value::Node).map_err(plain)
            }
            value => Ok(value),
        };
        outputs?.into_iter().map(round).collect()
    }

    /// Evaluates a node whose inputs are known; none if the result is too large to keep.
    fn fold(&mut self, node: &NodeProto) -> Result<Option<Vec<Value>>, String> {
        let mut inner = Importer {
            functions: self.functions,
            ..Importer::empty(Graph::new("folded"), self.purpose, self.opset, self.formats)
        };
        inner.graph.origin = self.graph.origin.clone();
        inner.graph.module = self.graph.module.clone();
        for name in node.input.iter().filter(|i| !i.is_empty()) {
            inner.values.insert(name.clone(), self.values[name].clone());
        }
        let outputs = ops::import(&mut Node::new(&mut inner, node))?;
        let largest = inner.graph.ids().map(|id| inner.graph.ty(id).elements()).max().unwrap_or(0);
        if largest > FOLDED {
            return Ok(None);
        }
        let tensors = evaluate(&inner.graph, |id| inner.known_nodes[&id].tensor.clone());
        let value = |id: NodeId| {
            let format = inner.graph.ty(id).format;
            Value::Known(Rc::new(Known { tensor: tensors[id.index()].clone(), format }))
        };
        Ok(Some(outputs.into_iter().map(value).collect()))
    }

    fn constant(&mut self, node: &NodeProto) -> Result<Value, String> {
        let a = node.attribute.first().ok_or("has no value")?;
        let list = |dims: &[usize], values: Vec<f64>, format| {
            Ok(Value::Known(Rc::new(Known { tensor: Tensor::new(dims, values), format })))
        };
        match a.name() {
            "value" => {
                let weight = self.files.decode(a.t.as_ref().ok_or("has no value")?)?;
                let name = node.output.first().cloned().unwrap_or_default();
                Ok(match weight.elements() <= FOLDED {
                    true => Value::Known(Rc::new(known(&weight))),
                    false => Value::Weight(Rc::new(Initialiser { name, weight })),
                })
            }
            "value_float" => list(&[], vec![f64::from(a.f())], Format::F32),
            "value_int" => list(&[], vec![a.i() as f64], Format::I64),
            "value_floats" => list(&[a.floats.len()], a.floats.iter().map(|&v| f64::from(v)).collect(), Format::F32),
            "value_ints" => list(&[a.ints.len()], a.ints.iter().map(|&v| v as f64).collect(), Format::I64),
            other => Err(format!("a value given as `{other}` is not supported")),
        }
    }

    /// Shapes are known, whatever the values are.
    fn shape(&mut self, node: &NodeProto) -> Result<Value, String> {
        let name = node.input.first().map_or("", String::as_str);
        let dims: Vec<f64> = match self.values.get(name) {
            None => return Err(format!("`{name}` is not defined")),
            Some(Value::Node(id)) => self.graph.ty(*id).dims().iter().map(|&d| d as f64).collect(),
            Some(Value::Known(k)) => k.tensor.dims.iter().map(|&d| d as f64).collect(),
            Some(Value::Weight(i)) => i.weight.dims.iter().map(|&d| d as f64).collect(),
            Some(Value::Sequence(_)) => return Err(format!("`{name}` is a sequence, not a tensor")),
        };
        let tensor = if node.op_type() == "Size" {
            Tensor::scalar(dims.iter().product())
        } else {
            let rank = dims.len() as i64;
            let at = |name: &str, default: i64| {
                let i = node.attribute.iter().find(|a| a.name() == name).map_or(default, AttributeProto::i);
                (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize
            };
            let (start, end) = (at("start", 0), at("end", rank));
            let part = dims[start..end.max(start)].to_vec();
            Tensor::new(&[part.len()], part)
        };
        Ok(Value::Known(Rc::new(Known { tensor, format: Format::I64 })))
    }
}
