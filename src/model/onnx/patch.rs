//! A model's own file with other values, as it acts in inference. Everything else in it stays: names, open sizes, notes.

use super::File;
use super::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
use super::tensor::Files;
use super::trained::Notes;
use super::write::tensor;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::model::{Weight, Weights};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Above this, values go to a file beside the model: a protobuf message holds 2 GiB.
const INLINE: usize = 1 << 30;

/// A model file, and the file of its values where they are too many to be in it.
pub struct Written {
    /// A serialised `ModelProto`.
    pub model: Vec<u8>,
    /// External data, where values come to more than 1 GiB; each tensor at a multiple of 64 bytes.
    pub data: Option<Vec<u8>>,
}

impl File {
    /// The file with these values for its initialisers; `data_name` is what the file of values will be called.
    pub fn with_values(&self, values: &Weights, data_name: &str) -> Result<Written> {
        let bad = |why: String| Error::model(&self.path, why);
        let mut model = self.model.clone();
        let graph = model.graph.as_mut().expect("checked when the file was read");
        let mut files = Files::beside(&self.path);
        let mut held: Vec<(String, Weight)> = Vec::new();
        for t in &graph.initializer {
            let old = files.decode(t).map_err(|e| bad(format!("initialiser `{}`: {e}", t.name())))?;
            held.push((t.name().to_owned(), old));
        }
        let old: HashMap<&str, &Weight> = held.iter().map(|(n, w)| (n.as_str(), w)).collect();
        let notes = Notes::read(self.graph());
        let mut fresh: Vec<TensorProto> = Vec::new();
        for (name, before) in &held {
            let find = |n: &str| old.get(n).map(|w| Rc::new((*w).clone()));
            let copied = notes.as_ref().and_then(|n| n.transpose_of(name, &find));
            let now = match (values.get(name), copied.and_then(|of| values.get(of))) {
                (Some(w), _) => in_format(w, before.format),
                (None, Some(w)) => in_format(&transposed(w), before.format),
                (None, None) => before.clone(),
            };
            if now.dims != before.dims {
                return Err(bad(format!(
                    "`{name}` is {:?} in the model and {:?} in the checkpoint",
                    before.dims, now.dims
                )));
            }
            fresh.push(tensor(name, &now));
        }
        graph.initializer = fresh;
        infer(graph);
        Ok(with_data_apart(model, data_name))
    }
}

/// Encodes a model, with its initialisers in a file of their own where they are too many for one.
pub(super) fn with_data_apart(mut model: ModelProto, data_name: &str) -> Written {
    let graph = model.graph.get_or_insert_default();
    let size: usize = graph.initializer.iter().map(|t| t.raw_data().len()).sum();
    let data = (size > INLINE).then(|| move_out(graph, data_name));
    Written { model: model.encode_to_vec(), data }
}

/// Batch norms and dropout as they act in inference.
pub(super) fn infer(graph: &mut GraphProto) {
    let mut unread: HashSet<String> = HashSet::new();
    for node in &mut graph.node {
        match node.op_type() {
            "BatchNormalization" => {
                node.attribute.retain(|a| a.name() != "training_mode");
                node.output.truncate(1);
            }
            "Dropout" if node.input.len() > 1 => unread.extend(node.input.drain(1..)),
            _ => {}
        }
    }
    // What nodes no longer read, and initialisers that nobody else reads.
    let read: HashSet<String> = graph.node.iter().flat_map(|n| n.input.iter().cloned()).collect();
    let before = std::mem::take(&mut graph.initializer);
    let dropped = |t: &TensorProto| unread.contains(t.name()) && !read.contains(t.name());
    graph.initializer = before.into_iter().filter(|t| !dropped(t)).collect();
    // What a batch norm no longer yields is no output any more.
    let made: Vec<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let given =
        |name: &str| graph.input.iter().any(|i| i.name() == name) || graph.initializer.iter().any(|t| t.name() == name);
    graph.output.retain(|o| made.contains(&o.name()) || given(o.name()));
}

fn move_out(graph: &mut GraphProto, name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    for t in &mut graph.initializer {
        let bytes = t.raw_data.take().unwrap_or_default();
        let entry = |k: &str, v: String| StringStringEntryProto { key: Some(k.into()), value: Some(v) };
        t.external_data = vec![
            entry("location", name.to_owned()),
            entry("offset", data.len().to_string()),
            entry("length", bytes.len().to_string()),
        ];
        t.data_location = Some(DataLocation::External as i32);
        data.extend_from_slice(&bytes);
        // Every tensor at a multiple of a cache line, so that readers can map them.
        data.resize(data.len().next_multiple_of(64), 0);
    }
    data
}

fn in_format(w: &Weight, format: Format) -> Weight {
    if w.format == format { w.clone() } else { Weight::from_values(format, &w.dims, &w.values::<f64>()) }
}

fn transposed(w: &Weight) -> Weight {
    let [m, n] = w.dims[..] else { return w.clone() };
    let x = w.values::<f64>();
    let y: Vec<f64> = (0..m * n).map(|i| x[i % m * n + i / m]).collect();
    Weight::from_values(w.format, &[n, m], &y)
}
