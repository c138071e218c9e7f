//! A model's own file in mixed precision: casts where formats meet, weights in the format they are read in.
//!
//! Inputs and outputs of the model stay as they are, and so do all names of f32 tensors. A narrow tensor is called by its
//! name and its format (`h.f16`), and is cast back under its own name if anything reads it wide.

use super::File;
use super::narrow::{BF16, NodeFormats};
use super::operands::{cast, key, operand_positions, operands, prepare};
use super::order::all_reads;
use super::patch::with_data_apart;
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, NodeProto, StringStringEntryProto, TensorProto};
use super::tensor::Files;
use super::write::tensor;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::{Bound, Weight, Written};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A model in mixed precision, and what became of it.
pub struct Mixed {
    /// The file.
    pub written: Written,
    /// Nodes that the file has without its casts.
    pub nodes: usize,
    /// How many of them run in a narrow format.
    pub narrow: usize,
    /// Casts that were added.
    pub casts: usize,
    /// Bytes of the initialisers, before and after.
    pub bytes: [usize; 2],
}

impl File {
    /// Refuses a model that is in mixed precision already.
    pub fn require_wide(&self) -> Result<()> {
        let low = [DataType::Float16 as i32, DataType::Bfloat16 as i32];
        let graph = self.graph();
        let to_low = |n: &NodeProto| {
            n.op_type() == "Cast" && n.attribute.iter().any(|a| a.name() == "to" && low.contains(&(a.i() as i32)))
        };
        let held = graph.initializer.iter().find(|t| low.contains(&t.data_type())).map(TensorProto::name);
        let cast = graph.node.iter().find(|n| to_low(n)).and_then(|n| n.output.first()).map(String::as_str);
        match held.or(cast) {
            Some(name) => Err(Error::model(
                &self.path,
                format!(
                    "`{name}` is in a narrow format already; a model in mixed precision is written from one in f32"
                ),
            )),
            None => Ok(()),
        }
    }

    /// Refuses a format that no operation of the file's opset has.
    pub fn require_opset(&self, formats: &NodeFormats) -> Result<()> {
        if self.opset < BF16 && formats.values().any(|&f| f == Format::Bf16) {
            return Err(Error::model(
                &self.path,
                format!(
                    "opset {} has no bf16; export the model with a later opset_version (all operations have it in 22), or take f16 (--format f16)",
                    self.opset
                ),
            ));
        }
        Ok(())
    }

    /// The file with some nodes in narrow formats; `bound` is what it was imported as. `notes` go into its metadata.
    pub fn mixed(
        &self,
        bound: &Bound,
        formats: &NodeFormats,
        notes: &[(String, String)],
        data_name: &str,
    ) -> Result<Mixed> {
        let bad = |why: String| Error::model(&self.path, why);
        let mut model = self.model.clone();
        let graph = model.graph.as_mut().expect("checked when the file was read");
        prepare(graph, bound);
        let mut held = Vec::new();
        let mut files = Files::beside(&self.path);
        for t in &graph.initializer {
            let w = files.decode(t).map_err(|e| bad(format!("initialiser `{}`: {e}", t.name())))?;
            held.push((t.name().to_owned(), w));
        }
        let before = held.iter().map(|(_, w)| w.bytes().len()).sum();
        let m = Mixer::new(graph, bound, formats);
        let nodes = std::mem::take(&mut graph.node);
        let (count, narrow) = (nodes.len(), nodes.iter().filter(|n| m.format(n).is_some()).count());
        let mut out = Vec::new();
        // Old files list initialisers among the inputs as well.
        let is_held = |name: &str| held.iter().any(|(h, _)| h == name);
        m.casts_of(graph.input.iter().map(|i| i.name()).filter(|n| !is_held(n)), &mut out);
        for node in nodes {
            let results = node.output.clone();
            out.push(m.rewritten(node));
            m.casts_of(results.iter().map(String::as_str), &mut out);
        }
        let casts = out.len() - count;
        graph.node = out;
        graph.initializer = m.initialisers(&held);
        let is_left = |name: &str| graph.initializer.iter().any(|t| t.name() == name);
        graph.input.retain(|i| !is_held(i.name()) || is_left(i.name()));
        // Types of tensors that are not there any more.
        let there: HashSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        graph.value_info.retain(|v| there.contains(v.name()));
        let after = graph.initializer.iter().map(|t| t.raw_data().len()).sum();
        // Before version 4 of the IR every initialiser had to be an input as well.
        model.ir_version = model.ir_version.map(|v| v.max(4));
        model.metadata_props.retain(|p| !notes.iter().any(|(k, _)| p.key() == k));
        let entry = |(k, v): &(String, String)| StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) };
        model.metadata_props.extend(notes.iter().map(entry));
        let written = with_data_apart(model, data_name);
        Ok(Mixed { written, nodes: count, narrow, casts, bytes: [before, after] })
    }
}

struct Mixer<'a> {
    bound: &'a Bound,
    formats: &'a NodeFormats,
    /// The format of each result of a narrow node.
    narrow: HashMap<String, Format>,
    /// Tensors that are read in f32, and in which other formats.
    wide: HashSet<String>,
    read_in: BTreeMap<String, BTreeSet<Format>>,
    /// What a tensor is called in a narrow format.
    names: HashMap<(String, Format), String>,
}

impl<'a> Mixer<'a> {
    fn new(graph: &GraphProto, bound: &'a Bound, formats: &'a NodeFormats) -> Mixer<'a> {
        let mut m = Mixer {
            bound,
            formats,
            narrow: HashMap::new(),
            wide: graph.output.iter().map(|o| o.name().to_owned()).collect(),
            read_in: BTreeMap::new(),
            names: HashMap::new(),
        };
        let mut taken: HashSet<String> = graph.node.iter().flat_map(|n| &n.output).cloned().collect();
        taken.extend(graph.input.iter().map(|i| i.name().to_owned()));
        taken.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
        for node in &graph.node {
            let Some(f) = m.format(node) else { continue };
            for name in operands(node).filter(|n| bound.is_f32(n)).map(str::to_owned).collect::<Vec<_>>() {
                m.read_in.entry(name.clone()).or_default().insert(f);
                m.name(name, f, &mut taken);
            }
            for name in node.output.iter().filter(|o| bound.is_f32(o)).cloned().collect::<Vec<_>>() {
                m.narrow.insert(name.clone(), f);
                m.name(name, f, &mut taken);
            }
        }
        for node in &graph.node {
            let own: BTreeSet<&str> = match m.format(node) {
                Some(_) => operands(node).filter(|n| bound.is_f32(n)).collect(),
                None => BTreeSet::new(),
            };
            let reads = all_reads(node).into_iter().filter(|n| !own.contains(n) && m.shape_of(node, n).is_none());
            let reads: Vec<String> = reads.map(str::to_owned).collect();
            m.wide.extend(reads);
        }
        m
    }

    /// The narrow tensor whose shape a node can ask for instead of the wide one's.
    fn shape_of(&self, node: &NodeProto, name: &str) -> Option<String> {
        let asks = matches!(node.op_type(), "Shape" | "Size");
        let f = self.read_in.get(name).filter(|_| asks)?.first()?;
        Some(self.called(name, *f))
    }

    fn format(&self, node: &NodeProto) -> Option<Format> {
        self.formats.get(key(node)).copied()
    }

    fn name(&mut self, name: String, f: Format, taken: &mut HashSet<String>) {
        let base = format!("{name}.{f}");
        self.names.entry((name, f)).or_insert_with(|| {
            let mut own = base.clone();
            while !taken.insert(own.clone()) {
                own.push('_');
            }
            own
        });
    }

    fn called(&self, name: &str, f: Format) -> String {
        self.names[&(name.to_owned(), f)].clone()
    }

    /// A node in its format.
    fn rewritten(&self, mut node: NodeProto) -> NodeProto {
        if let Some(f) = self.format(&node) {
            for i in operand_positions(&node).collect::<Vec<_>>() {
                if self.bound.is_f32(&node.input[i]) {
                    node.input[i] = self.called(&node.input[i], f);
                }
            }
            for o in &mut node.output {
                if self.narrow.contains_key(o) {
                    *o = self.called(o, f);
                }
            }
        } else if let Some(narrow) = node.input.first().and_then(|name| self.shape_of(&node, name)) {
            node.input[0] = narrow;
        }
        node
    }

    /// Casts of tensors that were just computed into the other formats they are read in.
    fn casts_of<'n>(&self, computed: impl Iterator<Item = &'n str>, out: &mut Vec<NodeProto>) {
        for name in computed {
            let own = self.narrow.get(name).copied();
            let from = own.map_or(name.to_owned(), |f| self.called(name, f));
            if own.is_some() && self.wide.contains(name) {
                out.push(cast(&from, Format::F32, name));
            }
            for &f in self.read_in.get(name).into_iter().flatten().filter(|&&f| Some(f) != own) {
                out.push(cast(&from, f, &self.called(name, f)));
            }
        }
    }

    /// Initialisers in the formats they are read in.
    fn initialisers(&self, held: &[(String, Weight)]) -> Vec<TensorProto> {
        let mut out = Vec::new();
        for (name, w) in held {
            let narrow = self.read_in.get(name);
            if narrow.is_none() || self.wide.contains(name) {
                out.push(tensor(name, w));
            }
            for &f in narrow.into_iter().flatten() {
                out.push(tensor(&self.called(name, f), &Weight::from_values(f, &w.dims, &w.values::<f32>())));
            }
        }
        out
    }
}
