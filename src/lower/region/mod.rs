//! What can share a kernel.
//!
//! A region is a set of buffers written by one kernel, with everything between them and the buffers they are computed
//! from. Whether that can be one kernel is decided by *axis unification*: every axis of every value in the region gets
//! a variable, operations identify variables (elementwise ones align them, a reduction marks some as reduced), and the
//! region is a kernel if what comes out is one domain `outer × inner` with every reduction over the whole of `inner`.

mod domain;

use super::axes::{Axes, Site};
use super::view::View;
use crate::ir::{Graph, NodeId, Op};
pub(super) use domain::hidden_axis;
use domain::needs_wide;
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

/// Stack that one operation may need, and how much is added where less is left.
pub(super) const RED_ZONE: usize = 64 << 10;
pub(super) const STACK: usize = 4 << 20;

#[derive(Clone, Debug)]
pub struct Region {
    /// The `put` and `cast` nodes it computes, ascending.
    pub roots: Vec<NodeId>,
    /// Buffers it reads that it does not write.
    pub reads: BTreeSet<NodeId>,
    /// Buffers that must have been written, though it does not read them.
    pub waits: BTreeSet<NodeId>,
    pub layout: Layout,
    /// Computes in f64.
    pub wide: bool,
    /// Reductions, each of which has a result of its own to keep in registers.
    pub reductions: usize,
    /// A loop over a body of its own; its roots are what is taken out of it.
    pub is_loop: bool,
}

/// The domain of a region and where each value's axes lie in it.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub outer: Vec<usize>,
    pub inner: Vec<usize>,
    pub product: Option<NodeId>,
    axes: Axes,
    /// The domain axis that each variable of `axes` is.
    place: Vec<Option<usize>>,
    /// The shape of all roots, if the region is elementwise throughout: every axis of every value is then the one of this
    /// shape as far from the last. Of single numbers, whatever their ranks, it is that of a scalar.
    pub aligned: Option<Vec<usize>>,
    /// The axes are still to be laid out, which waits until the region stays as it is.
    pub is_stale: bool,
}

impl Layout {
    /// Is this read of a buffer part of the region?
    pub fn has(&self, site: Site) -> bool {
        self.axes.has(site)
    }

    /// The domain axes that an axis of a value or read is made of, outermost first; none for extent 1.
    pub fn axis(&self, site: Site, axis: usize) -> Vec<usize> {
        self.axes.leaves_of(site, axis).into_iter().filter_map(|v| self.place[v]).collect()
    }

    /// The same for each of its axes.
    pub fn axes_of(&self, site: Site) -> Vec<Vec<usize>> {
        (0..self.axes.rank(site)).map(|i| self.axis(site, i)).collect()
    }

    /// The domain axes of all its axes, one after another.
    pub fn all_axes(&self, site: Site) -> Vec<usize> {
        self.axes.all_leaves(site).into_iter().filter_map(|v| self.place[v]).collect()
    }
}

/// The buffer behind a chain of views, and the view of it; none if a value must be computed first.
pub fn resolve_view(graph: &Graph, id: NodeId) -> Option<(NodeId, View)> {
    stacker::maybe_grow(RED_ZONE, STACK, || resolve_view_inside(graph, id))
}

fn resolve_view_inside(graph: &Graph, id: NodeId) -> Option<(NodeId, View)> {
    let op = graph.op(id);
    if matches!(op, Op::After) {
        return resolve_view(graph, *graph.inputs(id).first()?);
    }
    if let Op::Alias { dims } = op {
        let (buffer, view) = resolve_view(graph, *graph.inputs(id).first()?)?;
        return Some((buffer, view.reshape(&dims.fixed()?)?));
    }
    if op.is_buffer() {
        return Some((id, View::contiguous(&graph.ty(id).dims())));
    }
    if !op.is_view() {
        return None;
    }
    let (buffer, view) = resolve_view(graph, *graph.inputs(id).first()?)?;
    Some((buffer, view_through(op, &view, &graph.ty(id).dims())?))
}

/// A view composed with a view operation; none if strides and guards cannot say it.
pub fn view_through(op: &Op, view: &View, dims: &[usize]) -> Option<View> {
    Some(match op {
        Op::Broadcast { .. } => view.broadcast(dims),
        Op::Transpose { perm } => view.transpose(perm),
        Op::Slice { axis, start, stop, step } => view.slice(*axis, *start, *stop, *step),
        Op::Reshape { .. } => view.reshape(dims)?,
        Op::Pad { axis, lo, hi, inner } => view.pad(*axis, *lo, *hi, *inner)?,
        Op::Window { axis, stride, dilation, lo, fill, .. } => {
            view.window(*axis, [dims[*axis], dims[axis + 1]], [*stride, *dilation], *lo, *fill)?
        }
        Op::Unwindow { axis, extent, stride, dilation, lo } => {
            view.unwindow(*axis, *extent, [*stride, *dilation], *lo)?
        }
        _ => return None,
    })
}

/// The buffer an operand of a product lies in.
pub fn underlying(graph: &Graph, id: NodeId) -> NodeId {
    match graph.op(id) {
        Op::Alias { .. } | Op::After => graph.inputs(id).first().map_or(id, |&x| underlying(graph, x)),
        _ => id,
    }
}

/// The region of scan nodes that run the same loop.
pub(super) fn loop_region(graph: &Graph, roots: Vec<NodeId>) -> Result<Region, String> {
    let mut reads = BTreeSet::new();
    for &input in graph.inputs(roots[0]) {
        if !graph.op(input).is_buffer() {
            return Err(format!("`{}` needs `{}` in memory", graph.name_of(roots[0]), graph.name_of(input)));
        }
        reads.insert(underlying(graph, input));
    }
    let waits = BTreeSet::new();
    Ok(Region { roots, reads, waits, layout: Layout::default(), wide: false, reductions: 0, is_loop: true })
}

/// Decides what can be one kernel of a graph.
pub(super) struct Analyser<'a> {
    graph: &'a Graph,
    /// The sources whose next value a buffer becomes.
    updates: BTreeMap<NodeId, Vec<NodeId>>,
    /// What [`resolve_view`] says of every value, found when it is asked for.
    views: Vec<OnceCell<Option<(NodeId, View)>>>,
    /// What must have been written before a value is read, for those that say so.
    waits: BTreeMap<NodeId, Vec<NodeId>>,
    /// The cone that each value was last seen in, and how many there were.
    seen: RefCell<(Vec<u32>, u32)>,
}

/// A region's contents, both ascending: values computed, and reads with the buffer each reaches.
struct Cone<'a> {
    values: Vec<NodeId>,
    reads: Vec<(Site, &'a (NodeId, View))>,
}

impl Cone<'_> {
    fn is_read(&self, site: Site) -> bool {
        self.reads.binary_search_by_key(&site, |r| r.0).is_ok()
    }
}

impl<'a> Analyser<'a> {
    /// `next` is each updated source with the buffer that becomes its next value.
    pub fn new(graph: &'a Graph, next: &BTreeMap<NodeId, NodeId>) -> Analyser<'a> {
        let mut updates: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        next.iter().for_each(|(&source, &buffer)| updates.entry(buffer).or_default().push(source));
        let (views, seen) = (vec![OnceCell::new(); graph.len()], RefCell::new((vec![0; graph.len()], 0)));
        let mut waits: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for id in graph.ids() {
            let x = graph.inputs(id);
            let own = match graph.op(id) {
                Op::After => Some(underlying(graph, x[1])),
                op if op.is_view() || matches!(op, Op::Alias { .. }) => None,
                _ => continue,
            };
            let all: Vec<NodeId> = own.into_iter().chain(waits.get(&x[0]).into_iter().flatten().copied()).collect();
            if !all.is_empty() {
                waits.insert(id, all);
            }
        }
        Analyser { graph, updates, views, waits, seen }
    }

    /// What must have been written before a cone's reads.
    fn waits<'s>(&'s self, cone: &'s Cone) -> impl Iterator<Item = NodeId> + 's {
        let read = |&(site, _): &(Site, &(NodeId, View))| match site {
            Site::Read { user, operand } => self.waits.get(&self.graph.inputs(user)[operand]),
            Site::Value(_) => None,
        };
        cone.reads.iter().filter_map(read).flatten().copied()
    }

    fn view(&self, id: NodeId) -> Option<&(NodeId, View)> {
        self.views[id.index()].get_or_init(|| resolve_view(self.graph, id)).as_ref()
    }

    /// Checks that the roots, ascending, can be one kernel and lays out its domain. All reads of a buffer run over it in the same way
    /// if they can (a maximum over a buffer, and the exponentials that use it), each in its own way if not.
    pub fn region(&self, roots: &[NodeId]) -> Result<Region, String> {
        let cone = self.cone(roots)?;
        self.lay_out(roots, &cone, true).or_else(|_| self.lay_out(roots, &cone, false))
    }

    /// Makes an elementwise region that of `other`'s values too, of which there may be many: all but its axes, which takes no
    /// look at all of them, because both have the same. Returns whether it did; if not, it takes a closer look.
    pub fn add_aligned(&self, region: &mut Region, other: &Region) -> bool {
        if region.layout.aligned.is_none() || region.layout.aligned != other.layout.aligned {
            return false;
        }
        let updated = |r: &Region, by: &Region| {
            by.roots.iter().filter_map(|root| self.updates.get(root)).flatten().any(|source| r.reads.contains(source))
        };
        // A single number has no other position to be read at.
        let single = region.layout.aligned.as_ref().is_some_and(Vec::is_empty);
        let in_place = !single && (updated(region, other) || updated(other, region));
        if in_place || other.roots.iter().any(|r| region.reads.contains(r)) {
            return false;
        }
        let mut roots = [&region.roots[..], &other.roots].concat();
        roots.sort_unstable();
        let Ok(cone) = self.cone_of(&other.roots, &roots) else { return false };
        region.roots = roots;
        region.reads.extend(cone.reads.iter().map(|r| r.1.0));
        region.waits.extend(self.waits(&cone));
        region.wide |= cone.values.iter().any(|&v| needs_wide(self.graph, v));
        let (outer, aligned) = (other.layout.outer.clone(), other.layout.aligned.clone());
        region.layout = Layout { outer, aligned, is_stale: true, ..Layout::default() };
        true
    }

    fn cone(&self, roots: &[NodeId]) -> Result<Cone<'_>, String> {
        self.cone_of(roots, roots)
    }

    /// The cone of some of a region's roots, down to the others.
    fn cone_of(&self, some: &[NodeId], roots: &[NodeId]) -> Result<Cone<'_>, String> {
        let graph = self.graph;
        let mut cone = Cone { values: Vec::new(), reads: Vec::new() };
        let (seen, now) = &mut *self.seen.borrow_mut();
        *now += 1;
        let mut stack: Vec<NodeId> = some.to_vec();
        while let Some(id) = stack.pop() {
            if std::mem::replace(&mut seen[id.index()], *now) == *now {
                continue;
            }
            cone.values.push(id);
            let op = graph.op(id);
            for (operand, &input) in self.graph.inputs(id).iter().enumerate() {
                let gathered = matches!(op, Op::Gather { .. }) && operand == 0;
                let found = self.view(input).filter(|(_, v)| !gathered || v.guards.is_empty());
                let needs_buffer = gathered || matches!(op, Op::Concat { .. }) || op.is_product();
                match found {
                    // A register of this very kernel, if read as it was written.
                    Some((buffer, _)) if roots.binary_search(buffer).is_ok() => {
                        if *buffer != input || needs_buffer {
                            return Err(format!(
                                "`{}` reads `{}` across positions",
                                graph.name_of(id),
                                graph.name_of(*buffer)
                            ));
                        }
                        if some.binary_search(buffer).is_ok() {
                            stack.push(*buffer);
                        }
                    }
                    Some(found) => cone.reads.push((Site::Read { user: id, operand }, found)),
                    None if needs_buffer => {
                        return Err(format!("`{}` needs `{}` in memory", graph.name_of(id), graph.name_of(input)));
                    }
                    None => stack.push(input),
                }
            }
        }
        cone.values.sort_unstable();
        cone.reads.sort_unstable_by_key(|r| r.0);
        Ok(cone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::text;

    /// A label compared with positions is f32's work, stored positions or not; sums of whole numbers are not.
    #[test]
    fn what_f32_holds_is_not_computed_in_f64() {
        let g = text::parse(
            "model m { input y: i64[4]  p = iota(dims=[4, 8], axis=1)  s = put(p, format=i64)
               l = reshape(y, dims=[4, 1])  a = eq(p, l)  b = eq(s, l)  c = eq(l, reshape(y, dims=[1, 4]))
               n = sum(convert(b, format=i64), axes=[1]) }",
            "m",
        )
        .unwrap();
        let wide: Vec<&str> = ["p", "s", "l", "a", "b", "c", "n"]
            .into_iter()
            .filter(|name| needs_wide(&g, g.find(name).unwrap()))
            .collect();
        assert_eq!(wide, ["c", "n"]);
    }
}
