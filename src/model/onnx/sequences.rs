//! Sequences of tensors whose length is known: what exporters make of `split`, `chunk` and lists.
//!
//! A sequence is no value of a graph. It is resolved at import: its elements are, and so are the positions at which it is
//! read, so that nothing but the tensors is left.

use super::importer::{Importer, Value};
use super::node::Node;
use super::proto::NodeProto;

/// The operations on sequences.
pub const OPS: [&str; 8] = [
    "ConcatFromSequence",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
];

impl Importer<'_> {
    /// What an operation on sequences yields.
    pub(super) fn sequence(&mut self, node: &NodeProto) -> Result<Value, String> {
        let name = |i: usize| node.input.get(i).map_or("", String::as_str);
        match node.op_type() {
            "SplitToSequence" => split(&mut Node::new(self, node)),
            "SequenceEmpty" => Ok(Value::Sequence(Vec::new().into())),
            "SequenceConstruct" => {
                let elements = node.input.iter().map(|i| self.value(i)).collect::<Result<Vec<_>, _>>()?;
                Ok(Value::Sequence(elements.into()))
            }
            "SequenceAt" => {
                let of = self.elements(name(0))?;
                let at = self.position(node, 1, of.len())?.ok_or("lacks its position")?;
                of.get(at).cloned().ok_or_else(|| outside(at as i64, of.len()))
            }
            "SequenceErase" => {
                let mut of = self.elements(name(0))?.to_vec();
                let at = self.position(node, 1, of.len())?.or(of.len().checked_sub(1));
                let at = at.filter(|&at| at < of.len()).ok_or("takes an element out of an empty sequence")?;
                of.remove(at);
                Ok(Value::Sequence(of.into()))
            }
            "SequenceInsert" => {
                let mut of = self.elements(name(0))?.to_vec();
                let at = self.position(node, 2, of.len())?.unwrap_or(of.len());
                of.insert(at, self.value(name(1))?);
                Ok(Value::Sequence(of.into()))
            }
            "SequenceLength" => Ok(Value::whole(self.elements(name(0))?.len() as f64)),
            _ => self.joined(node),
        }
    }

    fn elements(&self, name: &str) -> Result<std::rc::Rc<[Value]>, String> {
        match self.value(name)? {
            Value::Sequence(of) => Ok(of),
            _ => Err(format!("`{name}` is no sequence")),
        }
    }

    /// A position in a sequence, which may be its end; none if it is not given.
    fn position(&self, node: &NodeProto, i: usize, length: usize) -> Result<Option<usize>, String> {
        let Some(name) = node.input.get(i).filter(|n| !n.is_empty()) else { return Ok(None) };
        let known = self.known(name).ok_or_else(|| {
            format!("the position `{name}` depends on the data; only known positions are supported: unroll the loop")
        })?;
        let at = known.tensor.data.first().copied().unwrap_or(0.0) as i64;
        let from_start = if at < 0 { at.saturating_add(length as i64) } else { at };
        let inside = usize::try_from(from_start).ok().filter(|&p| p <= length);
        inside.map(Some).ok_or_else(|| outside(at, length))
    }

    /// `ConcatFromSequence`: along an axis, or along a new one.
    fn joined(&mut self, node: &NodeProto) -> Result<Value, String> {
        let of = self.elements(node.input.first().map_or("", String::as_str))?;
        // Elements have no names of their own.
        let name = format!("{}.element", node.input[0]);
        let mut n = Node::new(self, node);
        if n.flag("new_axis", false) {
            return n.stacked(&of, &name, n.int("axis", 0)).map(Value::Node);
        }
        let parts = n.nodes(&of, &name)?;
        let axis = n.axis_of(*parts.first().ok_or("joins an empty sequence")?, 0)?;
        n.concat(&parts, axis).map(Value::Node)
    }
}

/// Parts of the sizes given, or of a size that all have but the last.
fn split(n: &mut Node) -> Result<Value, String> {
    let x = n.x(0)?;
    let axis = n.axis_of(x, 0)?;
    let extent = n.dims(x)[axis];
    // Without sizes, parts are of one row, with the axis or without it.
    let (sizes, keeps_axis) = match n.has(1) {
        false => (vec![1; n.room(&[extent])?], n.flag("keepdims", true)),
        true if n.known(1)?.tensor.dims.is_empty() => {
            let each = usize::try_from(n.ints(1)?[0]).ok().filter(|&e| e > 0).ok_or("splits into parts of no size")?;
            let count = n.room(&[extent.div_ceil(each)])?;
            ((0..count).map(|i| each.min(extent - i * each)).collect(), true)
        }
        true => {
            let size = |&v: &i64| usize::try_from(v).map_err(|_| format!("a part of size {v}"));
            (n.ints(1)?.iter().map(size).collect::<Result<Vec<_>, _>>()?, true)
        }
    };
    if sizes.iter().try_fold(0usize, |sum, &s| sum.checked_add(s)) != Some(extent) {
        return Err(format!("parts {sizes:?} do not add up to {extent}"));
    }
    let mut parts = Vec::new();
    let mut start = 0;
    for size in sizes {
        let mut part = n.slice(x, axis, start, start + size)?;
        if !keeps_axis {
            let mut dims = n.dims(part);
            dims.remove(axis);
            part = n.reshape(part, &dims)?;
        }
        parts.push(Value::Node(part));
        start += size;
    }
    Ok(Value::Sequence(parts.into()))
}

fn outside(at: i64, length: usize) -> String {
    format!("position {at} is outside a sequence of {length}")
}
