//! From an ONNX graph to ours: names, initialisers, order, and errors that say all that is missing at once.

use super::ops;
use super::proto::tensor_shape_proto::dimension::Value as DimValue;
use super::proto::type_proto::Value as TypeValue;
use super::proto::{GraphProto, NodeProto, ValueInfoProto};
use super::tensor::{Constant, Files, format_of};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Dim, Graph, Init, NodeId, Num, Op, Role, Shape, Type};
use crate::model::Model;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// A graph under construction.
pub struct Importer {
    pub graph: Graph,
    values: HashMap<String, NodeId>,
    constants: HashMap<String, Constant>,
    /// Initialisers, which are trained if they are floating-point tensors; the rest are constants.
    trained: BTreeSet<String>,
    weights: BTreeMap<String, Vec<f32>>,
}

pub fn import(proto: &GraphProto, path: &Path) -> Result<Model> {
    let bad = |m: String| Error::model(path, m);
    unsupported(proto).map_err(bad)?;
    let mut files = Files::beside(path);
    // Exporters name every graph `main_graph`; the file's name says more.
    let name = path.file_stem().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned());
    let mut im = Importer {
        graph: Graph::new(name),
        values: HashMap::new(),
        constants: HashMap::new(),
        trained: BTreeSet::new(),
        weights: BTreeMap::new(),
    };
    for t in &proto.initializer {
        let c = files.decode(t).map_err(|e| bad(format!("initialiser `{}`: {e}", t.name())))?;
        if c.format.is_float() && !c.dims.is_empty() {
            im.trained.insert(t.name().to_owned());
        }
        im.constants.insert(t.name().to_owned(), c);
    }
    for input in proto.input.iter().filter(|i| !im.constants.contains_key(i.name())) {
        let ty = input_type(input).map_err(|e| bad(format!("input `{}`: {e}", input.name())))?;
        let id = im.graph.add_named(input.name(), Op::Input { label: false, ty, copy_of: None }, &[])?;
        im.values.insert(input.name().to_owned(), id);
    }
    for node in ordered(proto, &im).map_err(bad)? {
        let place = describe(node);
        im.graph.origin = Some(place.clone());
        if node.op_type() == "Constant" {
            let c = ops::constant(node, &mut files).map_err(|e| bad(format!("{place}: {e}")))?;
            let name = node.output.first().ok_or_else(|| bad(format!("{place}: has no output")))?;
            im.constants.insert(name.clone(), c);
            continue;
        }
        let outputs = ops::import(&mut im, node).map_err(|e| bad(format!("{place}: {e}")))?;
        for (name, id) in node.output.iter().zip(outputs).filter(|(n, _)| !n.is_empty()) {
            if im.values.contains_key(name) {
                return Err(bad(format!("{place}: defines `{name}`, which is defined already")));
            }
            if im.graph.is_auto_named(id) {
                im.graph.rename(id, name);
            }
            im.values.insert(name.clone(), id);
        }
    }
    for o in &proto.output {
        let id = im.value(o.name()).map_err(|e| bad(format!("output `{}`: {e}", o.name())))?;
        im.graph.add_output(o.name(), Role::Output, id);
    }
    Ok(Model { graph: im.graph, weights: im.weights })
}

/// "Relu `/act/Relu`": how messages name a node.
fn describe(node: &NodeProto) -> String {
    let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
    format!("{} `{name}`", node.op_type())
}

/// All operations without an importer, with counts and nodes, in one message.
fn unsupported(proto: &GraphProto) -> Result<(), String> {
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for node in &proto.node {
        let known =
            matches!(node.domain(), "" | "ai.onnx") && (ops::is_known(node.op_type()) || node.op_type() == "Constant");
        if !known {
            let domain = if node.domain().is_empty() { String::new() } else { format!("{}.", node.domain()) };
            let name =
                if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
            missing.entry(format!("{domain}{}", node.op_type())).or_default().push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let lines = missing.iter().map(|(op, nodes)| {
        let more = if nodes.len() > 3 { format!(", and {} more", nodes.len() - 3) } else { String::new() };
        format!("\n  {op} × {}: {}{more}", nodes.len(), nodes[..nodes.len().min(3)].join(", "))
    });
    Err(format!(
        "operations that are not supported:{}\nexport the model without them, or with a newer opset that spells them out",
        lines.collect::<String>()
    ))
}

/// Nodes in an order in which every input is computed before it is read.
fn ordered<'a>(proto: &'a GraphProto, im: &Importer) -> Result<Vec<&'a NodeProto>, String> {
    let producers: HashMap<&str, usize> = proto
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().filter(|o| !o.is_empty()).map(move |o| (o.as_str(), i)))
        .collect();
    let mut state = vec![0u8; proto.node.len()];
    let mut out = Vec::with_capacity(proto.node.len());
    for root in 0..proto.node.len() {
        // Depth first, without recursion: a chain of nodes can be long.
        let mut stack = vec![(root, 0)];
        while let Some((i, next)) = stack.pop() {
            let node = &proto.node[i];
            if state[i] == 2 {
                continue;
            }
            state[i] = 1;
            let Some(input) = node.input.get(next) else {
                state[i] = 2;
                out.push(node);
                continue;
            };
            stack.push((i, next + 1));
            if input.is_empty() || im.values.contains_key(input) || im.constants.contains_key(input) {
                continue;
            }
            match producers.get(input.as_str()) {
                None => return Err(format!("{} reads `{input}`, which nothing produces", describe(node))),
                Some(&p) if p == i => {
                    return Err(format!("{} reads its own output `{input}`: the graph has a cycle", describe(node)));
                }
                Some(&p) if state[p] == 1 => {
                    return Err(format!(
                        "the graph has a cycle through {} and {}",
                        describe(node),
                        describe(&proto.node[p])
                    ));
                }
                Some(&p) => stack.push((p, 0)),
            }
        }
    }
    Ok(out)
}

fn input_type(v: &ValueInfoProto) -> Result<Type, String> {
    let Some(TypeValue::TensorType(t)) = v.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Err("is not a tensor".into());
    };
    let shape = t.shape.as_ref().ok_or("has no shape; export with input shapes")?;
    let dims = shape.dim.iter().map(|d| match &d.value {
        Some(DimValue::DimValue(n)) => {
            usize::try_from(*n).map(Dim::Fixed).map_err(|_| format!("extent {n} is negative"))
        }
        Some(DimValue::DimParam(name)) if !name.is_empty() => Ok(Dim::Named(name.clone())),
        _ => Err("has an extent without value or name".to_owned()),
    });
    Ok(Type::new(Shape(dims.collect::<Result<_, _>>()?), format_of(t.elem_type())?))
}

impl Importer {
    /// The value of a name: computed, or an initialiser made a parameter (trained once, however often it is read).
    pub fn value(&mut self, name: &str) -> Result<NodeId, String> {
        if let Some(&id) = self.values.get(name) {
            return Ok(id);
        }
        let c = self.constants.get(name).cloned().ok_or_else(|| format!("`{name}` is not defined"))?;
        let text = |e: Error| match e {
            Error::Graph(m) => m,
            e => e.to_string(),
        };
        let id = if c.values.len() == 1 && c.format.is_float() && !self.trained.contains(name) {
            let scalar = self.graph.add(Op::Const(Num::new(c.values[0])), &[]).map_err(text)?;
            self.graph.reshape(scalar, &Shape::of(&c.dims)).map_err(text)?
        } else {
            let trained = self.trained.contains(name);
            let format = if c.format.is_float() { Format::F32 } else { c.format };
            let ty = Type::new(Shape::of(&c.dims), format);
            let op = if trained { Op::Param { init: Init::Data, ty } } else { Op::State { init: Init::Data, ty } };
            self.weights.insert(name.to_owned(), c.values.iter().map(|&v| v as f32).collect());
            self.graph.add_named(name, op, &[]).map_err(text)?
        };
        self.values.insert(name.to_owned(), id);
        Ok(id)
    }

    /// A value known at import: shapes, axes, scalars.
    pub fn constant(&self, name: &str) -> Option<&Constant> {
        self.constants.get(name)
    }
}
