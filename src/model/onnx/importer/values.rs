//! What a name of the file stands for: numbers that are known, or a node of the graph.

use super::{Importer, Initialiser, Known, Value, known, plain};
use crate::format::Format;
use crate::ir::{Init, NodeId, Num, Op, Shape, Type};
use crate::model::{Stands, Weight};
use std::rc::Rc;

impl Importer<'_> {
    /// The values of an initialiser, whether or not an operation computes with it, too: what an option of a node is given as.
    pub fn stored(&self, name: &str) -> Option<Rc<Known>> {
        match self.values.get(name)? {
            Value::Weight(i) => Some(Rc::new(known(&i.weight))),
            Value::Node(id) => Some(Rc::new(known(self.held(*id)?))),
            _ => None,
        }
    }

    /// What a name stands for.
    pub(in crate::model::onnx) fn value(&self, name: &str) -> Result<Value, String> {
        self.values.get(name).cloned().ok_or_else(|| format!("`{name}` is not defined"))
    }

    /// The elements of a name, if they are known.
    pub fn known(&self, name: &str) -> Option<Rc<Known>> {
        match self.values.get(name)? {
            Value::Known(k) => Some(k.clone()),
            _ => None,
        }
    }

    /// The node of a name; what is known or an initialiser becomes one when it is first read.
    pub fn node_of(&mut self, name: &str) -> Result<NodeId, String> {
        let id = self.node_of_value(self.value(name)?, name)?;
        // A weight is read through its one node; what is known stays known, however often it is read.
        if let Some(Value::Weight(_)) = self.values.get(name) {
            self.values.insert(name.to_owned(), Value::Node(id));
        }
        Ok(id)
    }

    /// What the file holds for a node that stands for an initialiser.
    pub(in crate::model::onnx) fn held(&self, id: NodeId) -> Option<&Weight> {
        self.weights.get(self.graph.name_of(id)).filter(|_| self.graph.op(id).is_source())
    }

    /// The node of a value; a known one goes by `name` if it needs one.
    pub(in crate::model::onnx) fn node_of_value(&mut self, value: Value, name: &str) -> Result<NodeId, String> {
        match value {
            Value::Node(id) => Ok(id),
            Value::Known(k) => self.known_node(&k, Some(name)),
            Value::Sequence(of) => Err(format!("`{name}` is a sequence of {} tensors, not a tensor", of.len())),
            Value::Weight(i) => self.node_of_initialiser(&i),
        }
    }

    pub(super) fn node_of_initialiser(&mut self, i: &Initialiser) -> Result<NodeId, String> {
        let Initialiser { name, weight } = i;
        // A function, a step of a loop and a copy read it again.
        if let Some(id) = self.graph.find(name)
            && self.weights.get(name).is_some_and(|held| held.is_same(weight))
        {
            return Ok(id);
        }
        if let Some(of) = self.transpose_of(name) {
            let x = self.node_of(&of)?;
            return self.graph.add(Op::Transpose { perm: vec![1, 0] }, &[x]).map_err(plain);
        }
        let trained = weight.format.is_float() && !self.frozen.contains(name);
        let ty = Type::new(Shape::of(&weight.dims), weight.format.once_read());
        let op = if trained { Op::Param { init: Init::Data, ty } } else { Op::State { init: Init::Data, ty } };
        self.weights.insert(name.clone(), weight.clone());
        self.graph.add_named(name, op, &[]).map_err(plain)
    }

    /// The parameter whose transposed copy an initialiser is.
    pub(super) fn transpose_of(&self, name: &str) -> Option<String> {
        let weight = |name: &str| match self.values.get(name)? {
            Value::Weight(i) => Some(Rc::new(i.weight.clone())),
            _ => self.weights.get(name).cloned().map(Rc::new),
        };
        self.notes.as_ref()?.transpose_of(name, &weight).map(str::to_owned)
    }

    /// A node for a known tensor: a constant where one number will do, else a tensor among the weights.
    pub fn known_node(&mut self, k: &Rc<Known>, name: Option<&str>) -> Result<NodeId, String> {
        let (t, dims) = (&k.tensor, Shape::of(&k.tensor.dims));
        let format = k.format.once_read();
        let uniform = t.data.first().filter(|&&first| t.data.iter().all(|v| v.to_bits() == first.to_bits()));
        let id = match uniform {
            Some(&first) => {
                let mut id = self.graph.add(Op::Const(Num::new(first)), &[]).map_err(plain)?;
                if format != Format::F32 {
                    id = self.graph.add(Op::Convert(format), &[id]).map_err(plain)?;
                }
                self.graph.broadcast_to(id, &dims).map_err(plain)?
            }
            None => {
                // A tensor that several nodes read lies in memory once.
                if let Some(&id) = self.node_of_known.get(&Rc::as_ptr(k)) {
                    return Ok(id);
                }
                let name = self.graph.free_name(name.unwrap_or("constant"));
                let ty = Type::new(dims, format);
                self.weights.insert(name.clone(), Weight::from_values(format, &t.dims, &t.data));
                let id = self.graph.add_named(name, Op::State { init: Init::Data, ty }, &[]).map_err(plain)?;
                self.known_nodes.insert(id, k.clone());
                self.node_of_known.insert(Rc::as_ptr(k), id);
                id
            }
        };
        Ok(id)
    }

    /// What a tensor of the file is in the graph.
    pub(super) fn stands_for(&self, value: &Value) -> Stands {
        let (value, format) = match value {
            Value::Node(id) => (Some(self.graph.name_of(*id).to_owned()), self.graph.ty(*id).format),
            Value::Known(k) => (None, k.format),
            Value::Weight(i) => (None, i.weight.format),
            // Nothing is read from a sequence as it is.
            Value::Sequence(_) => (None, Format::Bool),
        };
        Stands { value, format }
    }

    /// Does a node stand for a running statistic that the file holds?
    pub fn is_statistic(&self, id: NodeId) -> bool {
        matches!(self.graph.op(id), Op::State { .. }) && self.held(id).is_some()
    }
}
