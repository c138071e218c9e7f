//! Which initialisers of a file are trained, where the exporter says so.
//!
//! A file does not tell a parameter from a causal mask or a rotary table. `torch.onnx.export` leaves notes: what the
//! module's parameters were, and, of every tensor that it computed while exporting, what it was computed from.

use super::proto::{GraphProto, NodeProto, StringStringEntryProto};
use crate::model::Weight;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

const SIGNATURE: &str = "pkg.torch.export.ExportedProgram.graph_signature";
const FOLDED_FROM: &str = "pkg.onnxscript.optimizer.folded_from";
const NAME_SCOPES: &str = "pkg.torch.onnx.name_scopes";

/// What an exporter noted about the module's parameters.
#[derive(Debug, PartialEq)]
pub struct Notes<'a> {
    parameters: BTreeSet<&'a str>,
    /// Modules with running statistics.
    batch_norms: BTreeSet<&'a str>,
    /// The parameters' names in notes of calls.
    placeholders: BTreeMap<&'a str, &'a str>,
    /// Tensors computed from parameters, with these.
    folded: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Notes<'a> {
    /// None if the file has no such notes.
    pub fn read(proto: &'a GraphProto) -> Option<Notes<'a>> {
        let signature = note(&proto.metadata_props, SIGNATURE)?;
        let placeholders: BTreeMap<&str, &str> = signature.lines().filter_map(|l| target(l, "PARAMETER")).collect();
        let buffers = signature.lines().filter_map(|l| target(l, "BUFFER"));
        let batch_norms = buffers.filter_map(|(_, name)| name.strip_suffix(".running_mean")).collect();
        let parameters: BTreeSet<&str> = placeholders.values().copied().collect();
        let folded = proto.value_info.iter().filter_map(|v| {
            let from = quoted(note(&v.metadata_props, FOLDED_FROM)?).filter(|name| parameters.contains(name));
            Some((v.name(), from.collect::<Vec<_>>())).filter(|(_, from)| !from.is_empty())
        });
        Some(Notes { folded: folded.collect(), batch_norms, placeholders, parameters })
    }

    /// Is a tensor a parameter, or computed from one?
    pub fn trains(&self, name: &str) -> bool {
        self.parameters.contains(name) || self.folded.contains_key(name)
    }

    /// Is a tensor a parameter of the module, as it is?
    pub fn is_parameter(&self, name: &str) -> bool {
        self.parameters.contains(name)
    }

    /// Is a parameter that of a batch norm?
    pub fn is_batch_norms(&self, parameter: &str) -> bool {
        parameter.rsplit_once('.').is_some_and(|(module, _)| self.batch_norms.contains(module))
    }

    /// The parameter that a note of a call means by a name.
    pub fn parameter_of(&self, placeholder: &str) -> Option<&'a str> {
        self.placeholders.get(placeholder).copied()
    }

    /// Tensors of the file that were computed from a parameter.
    pub fn folded_from<'s>(&'s self, parameter: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.folded.iter().filter(move |(_, from)| from.contains(&parameter)).map(|(name, _)| *name)
    }

    /// What the module's parameters were, by name.
    pub fn parameters(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.parameters.iter().copied()
    }

    /// Was a tensor of the file computed from this parameter?
    pub fn is_source(&self, parameter: &str) -> bool {
        self.folded.values().flatten().any(|from| *from == parameter)
    }

    /// The parameter of which a tensor is the transpose, if the file holds that, too: the two were one in the module,
    /// as embeddings that are used again as the last layer's weights.
    pub fn transpose_of(&self, name: &str, tensors: &dyn Fn(&str) -> Option<Rc<Weight>>) -> Option<&'a str> {
        let [of] = self.folded.get(name)?[..] else { return None };
        is_transpose(&*tensors(name)?, &*tensors(of)?).then_some(of)
    }
}

fn is_transpose(a: &Weight, b: &Weight) -> bool {
    let ([m, n], [p, q]) = (&a.dims[..], &b.dims[..]) else { return false };
    let size = a.format.bytes();
    let (x, y) = (a.bytes(), b.bytes());
    let same = |i: usize, j: usize| x[i * size..][..size] == y[j * size..][..size];
    a.format == b.format && (m, n) == (q, p) && (0..m * n).all(|i| same(i, i % n * m + i / n))
}

pub(super) fn note<'a>(notes: &'a [StringStringEntryProto], key: &str) -> Option<&'a str> {
    notes.iter().find(|n| n.key() == key).map(|n| n.value())
}

/// `p_layer_weight` and `layer.weight` in "p_layer_weight: PARAMETER target='layer.weight'"
fn target<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let (placeholder, rest) = line.split_once(": ")?;
    let (name, _) = rest.strip_prefix(kind)?.strip_prefix(" target='")?.split_once('\'')?;
    Some((placeholder.trim(), name))
}

/// The words of a list such as "['a', 'b']".
fn quoted(list: &str) -> impl Iterator<Item = &str> {
    list.split('\'').skip(1).step_by(2)
}

/// The module that a node is of, as the present exporter notes it: a list of names from the model's own, which is empty, to
/// the operation's.
pub fn module_of(node: &NodeProto) -> Option<Arc<str>> {
    let names: Vec<&str> = quoted(note(&node.metadata_props, NAME_SCOPES)?).collect();
    let (_, modules) = names.split_last()?;
    modules.last().filter(|m| !m.is_empty()).map(|&m| m.into())
}

#[cfg(test)]
mod tests {
    use super::super::proto::ValueInfoProto;
    use super::*;
    use crate::format::Format;

    fn entry(key: &str, value: &str) -> StringStringEntryProto {
        StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) }
    }

    fn folded(name: &str, from: &str) -> ValueInfoProto {
        ValueInfoProto {
            name: Some(name.into()),
            metadata_props: vec![entry(FOLDED_FROM, from)],
            ..ValueInfoProto::default()
        }
    }

    fn graph() -> GraphProto {
        let signature = "\n# inputs\np_a_weight: PARAMETER target='a.weight'\np_b: PARAMETER target='b'\n\
                         b_mask: BUFFER target='mask' persistent=True\nx: USER_INPUT\n";
        GraphProto {
            metadata_props: vec![entry(SIGNATURE, signature)],
            value_info: vec![folded("val_1", "['a.weight']"), folded("val_3", "['mask', 'val_2']")],
            ..GraphProto::default()
        }
    }

    #[test]
    fn parameters_and_what_was_folded_from_them_are_trained() {
        let graph = graph();
        let notes = Notes::read(&graph).unwrap();
        let trained = ["a.weight", "b", "val_1", "mask", "val_3"].map(|name| notes.trains(name));
        assert_eq!(trained, [true, true, true, false, false]);
        assert_eq!(Notes::read(&GraphProto::default()), None);
    }

    #[test]
    fn a_transposed_copy_is_recognised() {
        let tensor = |dims: &[usize], values: &[f32]| Rc::new(Weight::from_values(Format::F32, dims, values));
        let weight = tensor(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let copy = tensor(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        let other = tensor(&[3, 2], &[1.0, 4.0, 2.0, 5.0, 3.0, 7.0]);
        let graph = graph();
        let notes = Notes::read(&graph).unwrap();
        let of = |second: &Rc<Weight>| {
            notes.transpose_of("val_1", &|name| Some(if name == "val_1" { second } else { &weight }.clone()))
        };
        assert_eq!(of(&copy), Some("a.weight"));
        assert_eq!(of(&other), None);
        assert_eq!(notes.transpose_of("val_1", &|name| (name == "val_1").then(|| copy.clone())), None);
    }
}
