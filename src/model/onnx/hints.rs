//! What a file does not say, but shows signs of: worth telling somebody who is about to train it.

use super::importer::frozen;
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
    match Notes::read(proto) {
        Some(notes) => out.extend(lost(proto, &notes)),
        None => out.extend(copied(proto)),
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

/// What became of parameters that the file does not hold.
fn lost(proto: &GraphProto, notes: &Notes) -> Vec<String> {
    let held: BTreeSet<&str> = proto.initializer.iter().map(TensorProto::name).collect();
    let gone = notes.parameters().filter(|p| !held.contains(p));
    let (changed, gone): (Vec<&str>, Vec<&str>) = gone.partition(|p| notes.is_source(p));
    // Others are second names of parameters that are tied.
    let folded: Vec<&str> = gone.into_iter().filter(|p| notes.is_batch_norms(p)).collect();
    let mut out = Vec::new();
    if !folded.is_empty() {
        out.push(format!(
            "the exporter folded {} into the layers before their batch norms, which are trained without them; \
             torch.onnx.export(…, optimize=False) keeps them",
            listed(&folded)
        ));
    }
    let moved = |p: &&str| !notes.folded_from(p).all(is_transposed);
    let changed: Vec<&str> = changed.into_iter().filter(moved).collect();
    if !changed.is_empty() {
        let first = notes.folded_from(changed[0]).next().unwrap_or_default();
        out.push(format!(
            "the exporter computed with {} (`{first}` is what became of the first), and what it came to is trained \
             in their place: the same only where elements were no more than moved. torch.onnx.export(…, optimize=False) \
             keeps them",
            listed(&changed)
        ));
    }
    out
}

/// Is a tensor, by its name, a weight that the exporter turned round for a product?
fn is_transposed(name: &str) -> bool {
    name.strip_prefix("val_").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
        || ["t", "transpose", "permute"].iter().any(|p| {
            name.strip_prefix(p).is_some_and(|rest| rest.trim_start_matches('_').bytes().all(|b| b.is_ascii_digit()))
        })
}

/// Initialisers that go by other names, too, as TorchScript's exporter writes what is equal, whether or not it is tied.
fn copied(proto: &GraphProto) -> Option<String> {
    let held: BTreeSet<&str> = proto.initializer.iter().map(TensorProto::name).collect();
    let statistics = frozen(proto);
    let copies =
        proto.node.iter().filter(|n| n.op_type() == "Identity" && n.input.iter().all(|x| held.contains(x.as_str())));
    let names: Vec<&str> =
        copies.flat_map(|n| &n.output).map(String::as_str).filter(|n| !statistics.contains(*n)).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} are copies of other tensors of the file and trained as one with them. If the module has them apart, export \
             it with training=torch.onnx.TrainingMode.TRAINING, or with dynamo=True",
            listed(&names)
        )
    })
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
    let tensors: Vec<(&str, Weight)> = tensors
        .filter(|(_, w)| w.format.is_float() && w.dims.len() > 1 && w.elements() >= SOME && w.varies())
        .collect();
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

/// Bytes from all over a tensor: tensors that differ in them are not compared.
fn probe(bytes: &[u8]) -> [u8; 64] {
    std::array::from_fn(|i| bytes.get(i * bytes.len() / 64).copied().unwrap_or(0))
}
