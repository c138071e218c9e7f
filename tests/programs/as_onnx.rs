//! A program as an ONNX file, with what a runtime must compute from it.

use super::judge::Reference;
use mantissa::format::Format;
use mantissa::ir::{Op, Role, Tensor, evaluate};
use mantissa::model::{Checkpoint, Model, Purpose, Saved, Weight, Weights};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes `STEM.onnx`, and beside it `STEM.safetensors`: what goes in (`in.NAME`), what must come out (`out.NAME`), and how far
/// off each number may be (`allowed.NAME`). False if ONNX has no such program, or all its results are a label's.
///
/// # Errors
/// In words, where the file does not read back as the same program.
pub fn write(reference: &Reference, stem: &Path) -> Result<bool, String> {
    let graph = &reference.program.graph;
    let mut weights = Weights::new();
    let mut tensors = BTreeMap::new();
    for id in graph.sources() {
        let held = reference.source(id);
        let weight = Weight::from_values(graph.ty(id).format, &held.dims, &held.data);
        match graph.op(id) {
            Op::Input { .. } => drop(tensors.insert(format!("in.{}", graph.name_of(id)), saved(&weight))),
            _ => drop(weights.insert(graph.name_of(id).to_owned(), weight)),
        }
    }
    let Ok(written) = Model::from_graph(graph.clone()).to_onnx(&weights, &BTreeMap::new(), None, "") else {
        return Ok(false);
    };
    let path = stem.with_extension("onnx");
    std::fs::write(&path, &written.model).map_err(|e| e.to_string())?;
    // Loops are written as `Scan`, which is not read.
    let loops = graph.ids().any(|id| matches!(graph.op(id), Op::Scan(_)));
    let back = if loops { BTreeMap::new() } else { read_back(reference, &path)? };
    for o in graph.outputs().iter().filter(|o| o.role == Role::Output) {
        let (expected, allowed) = reference.allowed(o.node);
        if let Some(back) = back.get(&o.name) {
            let is_off = |i: &usize| (back.data[*i] - expected.data[*i]).abs() > allowed.data[*i];
            if let Some(i) = (0..expected.data.len()).find(is_off) {
                return Err(format!("read back, `{}`[{i}] is {:e}, not {:e}", o.name, back.data[i], expected.data[i]));
            }
        }
        for (kind, t) in [("out", &expected), ("allowed", &allowed)] {
            tensors.insert(format!("{kind}.{}", o.name), saved(&Weight::from_values(Format::F64, &t.dims, &t.data)));
        }
    }
    let checkpoint = Checkpoint { tensors, ..Checkpoint::default() };
    checkpoint.write(&stem.with_extension("safetensors")).map_err(|e| e.to_string())?;
    Ok(true)
}

/// What a written program yields in f64.
fn read_back(reference: &Reference, path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let bound = Model::read(path).and_then(|m| m.bind(&BTreeMap::new(), Purpose::Inference));
    let bound = bound.map_err(|e| e.to_string())?;
    let values = evaluate(&bound.graph, |id| {
        let name = bound.graph.name_of(id);
        match (bound.graph.op(id), reference.program.graph.find(name)) {
            (Op::Input { .. }, Some(input)) => reference.source(input),
            _ => {
                let w = &bound.weights[name];
                Tensor::new(&w.dims, w.values::<f64>())
            }
        }
    });
    let outputs = bound.graph.outputs().iter().filter(|o| o.role == Role::Output);
    Ok(outputs.map(|o| (o.name.clone(), values[o.node.index()].clone())).collect())
}

fn saved(w: &Weight) -> Saved {
    Saved { format: w.format, dims: w.dims.clone(), bytes: w.bytes().to_vec() }
}
