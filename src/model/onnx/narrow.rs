//! Which nodes of a model run in a narrow format: operations whose specification allows it, where a plan wants it.
//!
//! A node that runs in a narrow format reads its inputs and writes its outputs in it; in between runtimes accumulate in
//! f32. A plan is finer: it may store a result narrow that was computed from wide operands, or leave it in registers. So
//! nodes whose results the plan stores are as it says, and those whose results it keeps in registers follow their readers.

use super::File;
use super::operands::{key, operands, prepare};
use super::order::{all_reads, function_of, ordered};
use super::proto::{GraphProto, NodeProto};
use super::tensor::Files;
use crate::error::{Error, Result};
use crate::format::{Format, Overflow};
use crate::model::{Bound, Weight};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The format of each node that runs in a narrow one, by the name of its first output.
pub type NodeFormats = BTreeMap<String, Format>;

/// What a plan says of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is stored in f32.
    Wide,
    /// It is stored in this format, or is a product of operands in it.
    Narrow(Format),
    /// It stays in registers.
    Open,
    /// It is not in the plan: a part of what was recognised as one operation, or a constant.
    Unknown,
}

/// What a plan says of a model's values, by the names they have in the bound graph.
#[derive(Clone, Copy)]
pub struct Wishes<'a> {
    /// What the plan makes of the value.
    pub of: &'a dyn Fn(&str) -> Wish,
    /// Does a format's range hold the value?
    pub holds: &'a dyn Fn(&str, Format) -> bool,
}

/// Products, which narrow formats make fast.
const PRODUCTS: [&str; 9] = ["MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention", "LSTM", "GRU", "RNN"];

/// Operations that only move or pick numbers.
const MOVES: [&str; 21] = [
    "Concat",
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "MaxPool",
    "Pad",
    "Relu",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
];

/// The others that the specification defines on f16 and bf16.
const OTHERS: [&str; 65] = [
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Ceil",
    "Clip",
    "Cos",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "RMSNormalization",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Resize",
    "RotaryEmbedding",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
    "Tan",
    "ThresholdedRelu",
    "Where",
    "LRN",
];

/// What may become of small numbers among a node's constants. Tables and products sum or pick among many.
fn small_in(node: &NodeProto) -> Small {
    match is_product(node.op_type()) || node.op_type().starts_with("Gather") {
        true => Small::LostAmongOthers,
        false => Small::Kept,
    }
}

/// Operations that yield no floating-point numbers and read them in any format to the same effect.
const READS: [&str; 4] = ["IsInf", "IsNaN", "Shape", "Size"];

fn is_product(op: &str) -> bool {
    PRODUCTS.contains(&op)
}

fn moves(op: &str) -> bool {
    MOVES.contains(&op)
}

/// Can the operation run in a narrow format?
fn runs_narrow(op: &str) -> bool {
    is_product(op) || moves(op) || OTHERS.contains(&op) || READS.contains(&op)
}

/// The opset that brought bf16 to most operations, and to casts.
pub const BF16: i64 = 13;

/// The opset that brought bf16 to an operation later, by the type constraints of the specification's `Operators.md`.
#[rustfmt::skip]
const BF16_LATER: [(i64, &[&str]); 9] = [
    (14, &["BatchNormalization", "Trilu"]),
    (16, &["LeakyRelu", "PRelu", "Where"]),
    (17, &["LayerNormalization"]),
    (18, &["GroupNormalization"]),
    (20, &["Gelu", "IsInf"]),
    (22, &[
        "AveragePool", "Conv", "ConvTranspose", "Cos", "Elu", "GRU", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "InstanceNormalization", "LSTM", "LpNormalization", "LpPool", "MaxPool", "Mish", "RNN",
        "Round", "Selu", "Sin", "Softplus", "Softsign", "Tan", "ThresholdedRelu",
    ]),
    (23, &["Attention", "RMSNormalization", "RotaryEmbedding"]),
    (24, &["Swish"]),
    // It never did.
    (i64::MAX, &["Einsum"]),
];

/// Does the operation take a format in an opset that has the format? f16 has been there from the start.
fn takes(op: &str, format: Format, opset: i64) -> bool {
    let later = BF16_LATER.iter().find(|(_, ops)| ops.contains(&op));
    format != Format::Bf16 || later.is_none_or(|&(since, _)| opset >= since)
}

impl File {
    /// Which nodes run in which narrow format. `bound` is what the file was imported as.
    pub fn node_formats(&self, bound: &Bound, wishes: Wishes) -> Result<NodeFormats> {
        let bad = |why: String| Error::model(&self.path, why);
        let mut graph = self.graph().clone();
        prepare(&mut graph, bound);
        let order = ordered(&graph.node, &|_| true).map_err(bad)?;
        let constants = self.constants().map_err(bad)?;
        let (mut readers, mut outside) = (HashMap::<&str, Vec<&NodeProto>>::new(), BTreeSet::new());
        let mut producers = HashMap::new();
        for &node in &order {
            producers.extend(node.output.iter().map(|o| (o.as_str(), node)));
            let own: BTreeSet<&str> = operands(node).collect();
            for name in all_reads(node) {
                readers.entry(name).or_default().push(node);
                // Read as it is: by a graph inside the node, or beside its data.
                if !own.contains(name) {
                    outside.insert(name);
                }
            }
        }
        outside.extend(graph.output.iter().map(|o| o.name()));
        let is_called = |n: &NodeProto| function_of(&self.model.functions, n).is_some();
        let able: Vec<&NodeProto> =
            order.into_iter().filter(|n| runs_narrow(n.op_type()) && n.domain().is_empty() && !is_called(n)).collect();
        let (opset, formats) = (self.opset, NodeFormats::new());
        let mut a = Assigner { bound, wishes, opset, constants, readers, producers, outside, formats };
        for node in able.iter().rev() {
            a.as_wished(node);
        }
        for node in able.iter().filter(|n| moves(n.op_type()) || READS.contains(&n.op_type())) {
            a.as_given(node);
        }
        while able.iter().filter(|node| a.leave_wide(node)).count() > 0 {}
        Ok(a.formats)
    }

    /// Values of initialisers and constants of the main graph.
    fn constants(&self) -> Result<HashMap<&str, Weight>, String> {
        let graph: &GraphProto = self.graph();
        let mut files = Files::beside(&self.path);
        let mut out = HashMap::new();
        for t in &graph.initializer {
            out.insert(t.name(), files.decode(t)?);
        }
        for n in graph.node.iter().filter(|n| n.op_type() == "Constant") {
            let value = n.attribute.first();
            let held = match value.map(|a| (a.name(), a)) {
                Some(("value", a)) => a.t.as_ref().map(|t| files.decode(t)).transpose()?,
                Some(("value_float", a)) => Some(Weight::from_values(Format::F32, &[], &[a.f()])),
                Some(("value_floats", a)) => Some(Weight::from_values(Format::F32, &[a.floats.len()], &a.floats)),
                _ => None,
            };
            if let (Some(name), Some(w)) = (n.output.first(), held) {
                out.insert(name.as_str(), w);
            }
        }
        Ok(out)
    }
}

/// What may become of a constant's small numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Small {
    /// None may become zero: an epsilon that does divides by zero, whatever the size of the constant.
    Kept,
    /// Those may that are lost among a product's others, as its rounding is.
    LostAmongOthers,
}

/// Does a format hold all that a constant holds? Infinities stay what they are.
fn holds(w: &Weight, format: Format, small: Small) -> bool {
    let (mut all, mut lost) = (0.0, 0.0);
    for x in w.values::<f32>().into_iter().map(f64::from) {
        let rounded = format.round(x, Overflow::Ieee);
        if !rounded.is_finite() && x.is_finite() {
            return false;
        }
        all += if x.is_finite() { x * x } else { 0.0 };
        lost += if rounded == 0.0 { x * x } else { 0.0 };
    }
    match small {
        Small::Kept => lost == 0.0,
        Small::LostAmongOthers => {
            let roundoff = format.float().map_or(0.0, |s| s.unit_roundoff());
            lost <= roundoff * roundoff * all
        }
    }
}

struct Assigner<'a> {
    bound: &'a Bound,
    wishes: Wishes<'a>,
    opset: i64,
    constants: HashMap<&'a str, Weight>,
    readers: HashMap<&'a str, Vec<&'a NodeProto>>,
    producers: HashMap<&'a str, &'a NodeProto>,
    /// Tensors that something reads in f32 whatever runs narrow.
    outside: BTreeSet<&'a str>,
    formats: NodeFormats,
}

impl<'a> Assigner<'a> {
    fn results(&self, node: &'a NodeProto) -> Vec<&'a str> {
        node.output.iter().map(String::as_str).filter(|o| self.bound.is_f32(o)).collect()
    }

    fn holds(&self, name: &str, format: Format, small: Small) -> bool {
        match (self.constants.get(name), self.bound.tensors.get(name)) {
            (Some(w), _) => holds(w, format, small),
            (None, Some(t)) if t.format == Format::F32 => {
                t.value.as_deref().is_some_and(|v| (self.wishes.holds)(v, format))
            }
            (None, Some(_)) => true,
            (None, None) => false,
        }
    }

    /// Does the operation take the format, and would the node's operands and results all fit?
    fn fits(&self, node: &'a NodeProto, format: Format) -> bool {
        let small = small_in(node);
        takes(node.op_type(), format, self.opset)
            && operands(node).chain(self.results(node)).all(|name| self.holds(name, format, small))
    }

    fn take(&mut self, node: &NodeProto, format: Format) {
        self.formats.insert(key(node).to_owned(), format);
    }

    fn format_of(&self, node: &NodeProto) -> Option<Format> {
        self.formats.get(key(node)).copied()
    }

    /// The format that all readers of some tensors run in.
    fn read_in(&self, names: &[&str]) -> Option<Format> {
        let mut common = None;
        for name in names {
            if self.outside.contains(name) {
                return None;
            }
            for reader in self.readers.get(name).into_iter().flatten() {
                match (self.format_of(reader)?, common) {
                    (f, None) => common = Some(f),
                    (f, Some(known)) if f == known => {}
                    _ => return None,
                }
            }
        }
        common
    }

    /// What the plan stores narrow is so, and what it keeps in registers is as its readers are, which were asked before.
    fn as_wished(&mut self, node: &'a NodeProto) {
        let results = self.results(node);
        // The inside of norms and the like is f32 in every plan.
        let picks = moves(node.op_type()) || node.op_type() == "Where";
        let wish = |name: &&str| {
            let value = self.bound.tensors.get(*name).and_then(|t| t.value.as_deref());
            match value.map_or(Wish::Unknown, |v| (self.wishes.of)(v)) {
                Wish::Unknown if picks => Wish::Open,
                Wish::Unknown => Wish::Wide,
                wish => wish,
            }
        };
        let wishes: Vec<Wish> = results.iter().map(wish).collect();
        let narrow = wishes.iter().find_map(|w| if let Wish::Narrow(f) = w { Some(*f) } else { None });
        let format = match narrow {
            _ if wishes.contains(&Wish::Wide) || results.is_empty() => None,
            Some(f) => wishes.iter().all(|w| *w == Wish::Open || *w == Wish::Narrow(f)).then_some(f),
            None => self.read_in(&results),
        };
        if let Some(f) = format.filter(|&f| self.fits(node, f)) {
            self.take(node, f);
        }
    }

    /// The narrow format that a tensor is in, if it is.
    fn comes_in(&self, name: &str) -> Option<Format> {
        self.format_of(self.producers.get(name)?)
    }

    /// Moving what is narrow already is as exact, and moves less.
    fn as_given(&mut self, node: &'a NodeProto) {
        let given: Vec<&str> = operands(node).filter(|n| self.bound.is_f32(n)).collect();
        let formats: BTreeSet<Option<Format>> =
            given.iter().filter(|n| !self.constants.contains_key(*n)).map(|n| self.comes_in(n)).collect();
        if let (1, Some(&Some(f))) = (formats.len(), formats.first())
            && self.format_of(node).is_none()
            && takes(node.op_type(), f, self.opset)
            && given.iter().all(|n| self.constants.get(n).is_none_or(|w| holds(w, f, small_in(node))))
        {
            self.take(node, f);
        }
    }

    /// A node alone between wide ones gains nothing that two casts do not cost. Says whether it was narrow.
    fn leave_wide(&mut self, node: &'a NodeProto) -> bool {
        let Some(f) = self.format_of(node).filter(|_| !is_product(node.op_type())) else { return false };
        let given = operands(node).any(|n| self.comes_in(n) == Some(f));
        let results = self.results(node);
        let mut readers = results.iter().flat_map(|r| self.readers.get(r)).flatten();
        let read = readers.any(|r| self.format_of(r) == Some(f));
        if given || read {
            return false;
        }
        self.formats.remove(key(node));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classes of bug that converters have had: signs of tiny numbers, infinities of masks, epsilons lost to zero.
    #[test]
    fn constants_that_a_format_holds() {
        let of = |values: &[f32]| Weight::from_values(Format::F32, &[values.len()], values);
        let holds = |values: &[f32], f| holds(&of(values), f, Small::Kept);
        assert!(holds(&[0.5, -0.0, f32::NEG_INFINITY], Format::F16));
        assert!(!holds(&[f32::MIN], Format::F16), "a mask of the least f32 would become infinite");
        assert!(!holds(&[1e-12], Format::F16), "an epsilon would become zero");
        assert!(holds(&[1e-12], Format::Bf16));
        let mut weights = vec![0.1; 1000];
        weights[7] = -1e-12;
        assert!(!holds(&weights, Format::F16), "a deviation of many that would become zero");
        assert!(super::holds(&of(&weights), Format::F16, Small::LostAmongOthers), "one of many weights may");
        assert!(!super::holds(&of(&[1e-8; 1000]), Format::F16, Small::LostAmongOthers), "not all of them");
    }

    #[test]
    fn tables_are_sorted_apart() {
        for (i, op) in PRODUCTS.iter().chain(&MOVES).chain(&OTHERS).enumerate() {
            let again = PRODUCTS.iter().chain(&MOVES).chain(&OTHERS).skip(i + 1).any(|o| o == op);
            assert!(!again, "{op} is listed twice");
        }
    }
}
