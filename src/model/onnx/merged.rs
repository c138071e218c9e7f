//! Parameters that an exporter merged because they start out equal, taken apart again.
//!
//! `torch.onnx.export` writes small tensors of equal bytes once. In a module that was just made, that is every norm's weight
//! and every bias: the file would train them as one. Each node still carries a note of the call it was exported from, with
//! the names of the parameters as the module has them. Parameters that are tied in the module are one there, too, and stay
//! one: only tensors that are all one number are taken apart, which no two parameters are tied for.

use super::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use super::tensor::Files;
use super::trained::{Notes, note};
use std::collections::{BTreeMap, BTreeSet};

/// The exporter merges tensors of up to so many elements.
const MERGED: usize = 1024;
const CALL: &str = "pkg.torch.onnx.fx_node";

/// Gives every parameter of the module a tensor of its own.
pub(super) fn separate(model: &mut ModelProto, files: &mut Files) {
    let Some(graph) = model.graph.as_ref() else { return };
    let Some(notes) = Notes::read(graph) else { return };
    let mut copies: BTreeMap<String, TensorProto> = BTreeMap::new();
    let mut reads: Vec<(usize, usize, String)> = Vec::new();
    let held = mergeable(graph, &notes, files);
    for (i, node) in graph.node.iter().enumerate() {
        for (position, own) in meant(node, &notes, &held) {
            let copy = TensorProto { name: Some(own.to_owned()), ..held[node.input[position].as_str()].clone() };
            copies.insert(own.to_owned(), copy);
            reads.push((i, position, own.to_owned()));
        }
    }
    let Some(graph) = model.graph.as_mut() else { return };
    for (node, position, own) in reads {
        graph.node[node].input[position] = own;
    }
    graph.initializer.extend(copies.into_values());
}

/// Parameters that may stand for others, too.
fn mergeable<'a>(graph: &'a GraphProto, notes: &Notes, files: &mut Files) -> BTreeMap<&'a str, &'a TensorProto> {
    let all = graph.initializer.iter().filter(|t| notes.is_parameter(t.name()));
    let uniform = all.filter(|t| {
        let elements = t.dims.iter().try_fold(1i64, |n, d| n.checked_mul(*d));
        elements.is_some_and(|n| (1..=MERGED as i64).contains(&n)) && files.decode(t).is_ok_and(|w| !w.varies())
    });
    uniform.map(|t| (t.name(), t)).collect()
}

/// Inputs of a node that stand for another parameter than the one they name: its position, and the parameter.
fn meant<'a>(node: &NodeProto, notes: &Notes<'a>, held: &BTreeMap<&str, &TensorProto>) -> Vec<(usize, &'a str)> {
    let Some(call) = note(&node.metadata_props, CALL) else { return Vec::new() };
    let Some((_, arguments)) = call.split_once("](") else { return Vec::new() };
    let named: Vec<&str> = placeholders(arguments).filter_map(|p| notes.parameter_of(p)).collect();
    let read: BTreeSet<&str> = node.input.iter().map(String::as_str).collect();
    let missing: Vec<&str> = named.iter().copied().filter(|p| !read.contains(p) && !notes.is_source(p)).collect();
    let others: Vec<usize> = (0..node.input.len())
        .filter(|&i| held.contains_key(node.input[i].as_str()) && !named.contains(&node.input[i].as_str()))
        .collect();
    // A call may have become several nodes, each of which reads some of its parameters.
    let alike = |i: usize| {
        let mut of_name = missing.iter().filter(|p| last(p) == last(&node.input[i]));
        of_name.next().filter(|_| of_name.next().is_none()).copied()
    };
    match others.len() == missing.len() {
        true => others.into_iter().zip(missing).collect(),
        false => others.into_iter().filter_map(|i| Some((i, alike(i)?))).collect(),
    }
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// `p_b`, `x` in "args = (%p_b, [4], %x), kwargs = {}"
fn placeholders(arguments: &str) -> impl Iterator<Item = &str> {
    arguments.split('%').skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}
