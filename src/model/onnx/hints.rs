//! What a file does not say, but shows signs of: worth telling somebody who is about to train it.

use super::proto::{GraphProto, TensorProto};
use super::tensor::Files;
use super::trained::Notes;
use crate::model::Weight;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Tensors smaller than this are equal by chance, or because they start out as zeros or ones.
const SOME: usize = 16;

/// Sentences about a model file, each of which says what to do.
pub fn hints(proto: &GraphProto, files: &mut Files) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(notes) = Notes::read(proto) {
        let held: BTreeSet<&str> = proto.initializer.iter().map(TensorProto::name).collect();
        let lost: Vec<&str> = notes.parameters().filter(|p| !held.contains(p) && !notes.is_source(p)).collect();
        if !lost.is_empty() {
            out.push(format!(
                "the exporter folded away {}: batch norms into the layers before them, for one. They are not trained as \
                 what they were; torch.onnx.export(…, optimize=False) keeps them",
                listed(&lost)
            ));
        }
    }
    for group in equal(proto, files) {
        out.push(format!(
            "{} hold the same numbers. If the module has them as one parameter, they are trained apart here: freeze one \
             (--freeze), or tie them in the module and export it with optimize=False",
            listed(&group)
        ));
    }
    out
}

/// The first names of a list, and how many more there are.
fn listed(names: &[&str]) -> String {
    let first: Vec<String> = names.iter().take(3).map(|n| format!("`{n}`")).collect();
    let more = if names.len() > 3 { format!(" and {} more", names.len() - 3) } else { String::new() };
    first.join(", ") + &more
}

/// Floating-point initialisers of equal shape and bytes that are not all one number, by how many hold the same. Layers that
/// start out as copies of each other (`nn.TransformerEncoder`) are so in all of their tensors: then the first will do.
fn equal<'a>(proto: &'a GraphProto, files: &mut Files) -> Vec<Vec<&'a str>> {
    let tensors = proto.initializer.iter().filter_map(|t| Some((t.name(), files.decode(t).ok()?)));
    let tensors: Vec<(&str, Weight)> =
        tensors.filter(|(_, w)| w.format.is_float() && w.dims.len() > 1 && w.elements() >= SOME && varies(w)).collect();
    let mut alike: BTreeMap<(&[usize], [u8; 64]), Vec<usize>> = BTreeMap::new();
    for (i, (_, w)) in tensors.iter().enumerate() {
        alike.entry((&w.dims, probe(w.bytes()))).or_default().push(i);
    }
    let mut out: Vec<Vec<&str>> = Vec::new();
    for group in alike.into_values().filter(|group| group.len() > 1) {
        let mut by_bytes: HashMap<&[u8], Vec<&str>> = HashMap::new();
        for (name, w) in group.iter().map(|&i| &tensors[i]) {
            by_bytes.entry(w.bytes()).or_default().push(name);
        }
        out.extend(by_bytes.into_values().filter(|names| names.len() > 1));
    }
    out.sort();
    out.truncate(1);
    out
}

/// Are not all elements the same?
fn varies(w: &Weight) -> bool {
    let mut elements = w.bytes().chunks(w.format.bytes());
    let first = elements.next();
    elements.any(|e| Some(e) != first)
}

/// Bytes from all over a tensor: tensors that differ in them are not compared.
fn probe(bytes: &[u8]) -> [u8; 64] {
    std::array::from_fn(|i| bytes.get(i * bytes.len() / 64).copied().unwrap_or(0))
}
