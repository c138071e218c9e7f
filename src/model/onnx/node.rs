//! What an operation's importer works with: a node's inputs and attributes, and short names for building.

use super::importer::{FOLDED, Importer, Known, Value};
use super::proto::{AttributeProto, NodeProto};
use crate::error::Error;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Num, Op, ReduceKind, Shape, Tensor, Unary};
use crate::model::{Frozen, Modes, Purpose};
use std::rc::Rc;

pub type Import<T> = Result<T, String>;

/// Farther than any extent: files write "to the end" as the largest number there is. Products of two such, and sums, are far
/// from overflow.
const FAR: i64 = 1 << 31;

fn near(v: i64) -> i64 {
    v.clamp(-FAR, FAR)
}

/// A node being imported.
pub struct Node<'a, 'b> {
    pub im: &'a mut Importer<'b>,
    pub proto: &'a NodeProto,
}

fn plain(e: Error) -> String {
    match e {
        Error::Graph(m) => m,
        e => e.to_string(),
    }
}

impl<'a, 'b> Node<'a, 'b> {
    pub fn new(im: &'a mut Importer<'b>, proto: &'a NodeProto) -> Node<'a, 'b> {
        Node { im, proto }
    }

    // Attributes.

    pub fn attr(&self, name: &str) -> Option<&'a AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name() == name)
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attr(name).map_or(default, |a| near(a.i()))
    }

    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, default.into()) != 0
    }

    pub fn float(&self, name: &str, default: f32) -> f64 {
        f64::from(self.attr(name).map_or(default, |a| a.f()))
    }

    pub fn word(&self, name: &str, default: &str) -> String {
        self.attr(name).map_or(default.to_owned(), |a| String::from_utf8_lossy(a.s()).into_owned())
    }

    pub fn list(&self, name: &str) -> Option<Vec<i64>> {
        self.attr(name).map(|a| a.ints.iter().map(|&v| near(v)).collect())
    }

    /// A list of `k` sizes, or `default` for each.
    pub fn sizes_of(&self, name: &str, k: usize, default: usize) -> Import<Vec<usize>> {
        let list = self.sizes(name)?.unwrap_or_else(|| vec![default; k]);
        if list.len() == k { Ok(list) } else { Err(format!("{name} {list:?} should have {k} entries")) }
    }

    /// A list of sizes, which cannot be negative.
    pub fn sizes(&self, name: &str) -> Import<Option<Vec<usize>>> {
        let size = |&v: &i64| usize::try_from(v).map_err(|_| format!("{name} has the negative entry {v}"));
        self.list(name).map(|l| l.iter().map(size).collect()).transpose()
    }

    /// Does the layer that the node is act as in training? `written` is what the node says of itself.
    pub fn trains(&self, written: bool, frozen: impl Fn(&Modes) -> &Frozen) -> bool {
        match self.im.purpose {
            Purpose::Inference => false,
            Purpose::AsWritten => written,
            Purpose::Training(modes) => {
                let tensors = self.proto.input.iter().chain(&self.proto.output).map(String::as_str);
                !frozen(modes).holds(tensors.chain([self.proto.name()]))
            }
        }
    }

    // Inputs.

    pub fn inputs(&self) -> usize {
        self.proto.input.len()
    }

    pub fn outputs(&self) -> usize {
        self.proto.output.len()
    }

    pub fn wants(&self, output: usize) -> bool {
        self.proto.output.get(output).is_some_and(|o| !o.is_empty())
    }

    pub fn has(&self, i: usize) -> bool {
        self.proto.input.get(i).is_some_and(|n| !n.is_empty())
    }

    pub fn name(&self, i: usize) -> &'a str {
        self.proto.input.get(i).map_or("", String::as_str)
    }

    pub fn x(&mut self, i: usize) -> Import<NodeId> {
        if !self.has(i) {
            return Err(format!("lacks input {i}"));
        }
        self.im.node_of(self.name(i))
    }

    pub fn maybe(&mut self, i: usize) -> Import<Option<NodeId>> {
        if self.has(i) { self.x(i).map(Some) } else { Ok(None) }
    }

    pub fn all(&mut self) -> Import<Vec<NodeId>> {
        (0..self.inputs()).map(|i| self.x(i)).collect()
    }

    /// An input that must be known at import.
    pub fn known(&self, i: usize) -> Import<Rc<Known>> {
        let name = self.name(i);
        self.im
            .known(name)
            .or_else(|| self.im.stored(name))
            .ok_or_else(|| format!("input {i} (`{name}`) must be a constant; export the model with fixed shapes"))
    }

    /// Whole numbers of an input that must be known at import.
    pub fn ints(&self, i: usize) -> Import<Vec<i64>> {
        Ok(self.known(i)?.tensor.data.iter().map(|&v| near(v as i64)).collect())
    }

    /// Extents, or how often something is repeated, from an input that must be known at import.
    pub fn extents(&self, i: usize) -> Import<Vec<usize>> {
        let extents = self.ints(i)?.into_iter().map(|v| v.max(0));
        let extents: Vec<i64> = extents.collect();
        match extents.iter().find(|&&v| v == FAR) {
            Some(_) => Err(format!("input {i} asks for 2^{} elements or more along an axis", FAR.ilog2())),
            None => Ok(extents.into_iter().map(|v| v as usize).collect()),
        }
    }

    /// Whole numbers given as an attribute (older opsets) or as input `i`; none if neither is there.
    pub fn ints_or_attr(&self, name: &str, i: usize) -> Import<Option<Vec<i64>>> {
        match self.list(name) {
            Some(a) => Ok(Some(a)),
            None if self.has(i) => self.ints(i).map(Some),
            None => Ok(None),
        }
    }

    // Types.

    pub fn format(&self, x: NodeId) -> Format {
        self.im.graph.ty(x).format
    }

    pub fn dims(&self, x: NodeId) -> Vec<usize> {
        self.im.graph.ty(x).dims()
    }

    pub fn rank(&self, x: NodeId) -> usize {
        self.im.graph.shape(x).rank()
    }

    pub fn axis(&self, axis: i64, rank: usize) -> Import<usize> {
        let a = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(a)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| format!("axis {axis} is outside a tensor of rank {rank}"))
    }

    /// The node's `axis` attribute.
    pub fn axis_of(&self, x: NodeId, default: i64) -> Import<usize> {
        self.axis(self.int("axis", default), self.rank(x))
    }

    pub fn axes(&self, axes: &[i64], rank: usize) -> Import<Vec<usize>> {
        let mut out = axes.iter().map(|&a| self.axis(a, rank)).collect::<Import<Vec<_>>>()?;
        out.sort_unstable();
        out.dedup();
        Ok(out)
    }

    /// Refuses tensors of another rank.
    pub fn demand_rank(&self, x: NodeId, rank: usize, what: &str) -> Import<()> {
        if self.rank(x) == rank {
            Ok(())
        } else {
            Err(format!("{what} has the shape {:?}, not {rank} axes", self.dims(x)))
        }
    }

    // Building.

    pub fn add(&mut self, op: Op, x: &[NodeId]) -> Import<NodeId> {
        self.im.graph.add(op, x).map_err(plain)
    }

    /// A source under a name of its own.
    pub fn named(&mut self, name: &str, op: Op) -> Import<NodeId> {
        self.im.graph.add_named(name, op, &[]).map_err(plain)
    }

    pub fn one(&mut self, op: Op, x: &[NodeId]) -> Import<Vec<NodeId>> {
        Ok(vec![self.add(op, x)?])
    }

    pub fn un(&mut self, u: Unary, x: NodeId) -> Import<NodeId> {
        self.add(Op::Unary(u), &[x])
    }

    pub fn bin(&mut self, b: Binary, x: NodeId, y: NodeId) -> Import<NodeId> {
        self.add(Op::Binary(b), &[x, y])
    }

    pub fn num(&mut self, v: f64) -> Import<NodeId> {
        self.add(Op::Const(Num::new(v)), &[])
    }

    /// The root of a sum of squares: of a norm or a deviation that is one operation. Its gradient where it is 0 is 0, as
    /// frameworks have it, not infinite.
    pub fn root(&mut self, squares: NodeId) -> Import<NodeId> {
        let (zero, one) = (self.num_like(squares, 0.0)?, self.num_like(squares, 1.0)?);
        let vanishes = self.bin(Binary::Eq, squares, zero)?;
        let safe = self.select(vanishes, one, squares)?;
        let root = self.un(Unary::Sqrt, safe)?;
        self.select(vanishes, zero, root)
    }

    /// A number in the format of `like`, so that arithmetic with it keeps that format.
    pub fn num_like(&mut self, like: NodeId, v: f64) -> Import<NodeId> {
        let (c, format) = (self.num(v)?, self.format(like));
        self.convert(c, format)
    }

    pub fn with(&mut self, b: Binary, x: NodeId, v: f64) -> Import<NodeId> {
        let c = self.num_like(x, v)?;
        self.bin(b, x, c)
    }

    pub fn select(&mut self, c: NodeId, a: NodeId, b: NodeId) -> Import<NodeId> {
        self.add(Op::Select, &[c, a, b])
    }

    /// The value in another register format; nothing if it has it.
    pub fn convert(&mut self, x: NodeId, format: Format) -> Import<NodeId> {
        let same = self.format(x) == format || (format.is_low() && self.format(x) == Format::F32);
        if same { Ok(x) } else { self.add(Op::Convert(format), &[x]) }
    }

    pub fn reshape(&mut self, x: NodeId, dims: &[usize]) -> Import<NodeId> {
        self.im.graph.reshape(x, &Shape::of(dims)).map_err(plain)
    }

    pub fn broadcast(&mut self, x: NodeId, dims: &[usize]) -> Import<NodeId> {
        self.im.graph.broadcast_to(x, &Shape::of(dims)).map_err(plain)
    }

    pub fn transpose(&mut self, x: NodeId, perm: &[usize]) -> Import<NodeId> {
        if perm.iter().copied().eq(0..perm.len()) {
            return Ok(x);
        }
        self.add(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    pub fn reduce(&mut self, kind: ReduceKind, x: NodeId, axes: &[usize], keep: bool) -> Import<NodeId> {
        self.im.graph.reduce(kind, x, axes, keep).map_err(plain)
    }

    pub fn iota(&mut self, dims: &[usize], axis: usize) -> Import<NodeId> {
        self.add(Op::Iota { dims: Shape::of(dims), axis }, &[])
    }

    /// Positions along an axis of a tensor of `rank`, shaped to broadcast against it.
    pub fn positions(&mut self, rank: usize, axis: usize, extent: usize) -> Import<NodeId> {
        let mut dims = vec![1; rank];
        dims[axis] = extent;
        self.iota(&dims, axis)
    }

    pub fn slice(&mut self, x: NodeId, axis: usize, start: usize, stop: usize) -> Import<NodeId> {
        if start == 0 && self.dims(x).get(axis) == Some(&stop) {
            return Ok(x);
        }
        self.add(Op::Slice { axis, start, stop, step: 1 }, &[x])
    }

    pub fn concat(&mut self, parts: &[NodeId], axis: usize) -> Import<NodeId> {
        if let [one] = parts { Ok(*one) } else { self.add(Op::Concat { axis }, parts) }
    }

    /// The nodes of values that have no names of their own.
    pub fn nodes(&mut self, values: &[Value], name: &str) -> Import<Vec<NodeId>> {
        let each = values.iter().enumerate();
        each.map(|(i, value)| self.im.node_of_value(value.clone(), &format!("{name}.{i}"))).collect()
    }

    /// Values along a new axis.
    pub fn stacked(&mut self, values: &[Value], name: &str, axis: i64) -> Import<NodeId> {
        let mut parts = self.nodes(values, name)?;
        let axis = self.axis(axis, self.rank(*parts.first().ok_or("stacks nothing")?) + 1)?;
        for part in &mut parts {
            let mut dims = self.dims(*part);
            dims.insert(axis.min(dims.len()), 1);
            *part = self.reshape(*part, &dims)?;
        }
        self.concat(&parts, axis)
    }

    pub fn matmul(&mut self, a: NodeId, b: NodeId, ta: bool, tb: bool) -> Import<NodeId> {
        self.add(Op::MatMul { ta, tb, format: Format::F32 }, &[a, b])
    }

    /// How many elements a tensor has that is to be computed at import, or whose size loops at import go over: the one place
    /// where sizes that a file chooses become allocations.
    pub fn room(&self, extents: &[usize]) -> Import<usize> {
        let count = extents.iter().try_fold(1usize, |product, &d| product.checked_mul(d));
        count.filter(|&c| c <= FOLDED).ok_or_else(|| {
            let extents: Vec<String> = extents.iter().map(usize::to_string).collect();
            format!(
                "takes a table of {} elements, more than the {FOLDED} that are computed at import",
                extents.join(" × ")
            )
        })
    }

    /// A tensor of known values.
    pub fn table(&mut self, dims: &[usize], values: Vec<f64>, format: Format) -> Import<NodeId> {
        let k = Rc::new(Known { tensor: Tensor::new(dims, values), format });
        self.im.known_node(&k, None)
    }

    /// Rows of `x` along `axis` at known positions; a slice where they are a run.
    pub fn pick(&mut self, x: NodeId, axis: usize, rows: &[usize]) -> Import<NodeId> {
        let run = rows.windows(2).all(|w| w[1] == w[0] + 1);
        if let (true, Some(&first)) = (run, rows.first()) {
            return self.slice(x, axis, first, first + rows.len());
        }
        let index = self.table(&[rows.len()], rows.iter().map(|&r| r as f64).collect(), Format::I64)?;
        self.add(Op::Gather { axis }, &[x, index])
    }
}
