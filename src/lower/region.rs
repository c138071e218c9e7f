//! What can share a kernel.
//!
//! A region is a set of buffers written by one kernel, with everything between them and the buffers they are computed
//! from. Whether that can be one kernel is decided by *axis unification*: every axis of every value in the region gets
//! a variable, operations identify variables (elementwise ones align them, a reduction marks some as reduced), and the
//! region is a kernel if what comes out is one domain `outer × inner` with every reduction over the whole of `inner`.

use super::axes::Axes;
use super::emit::is_wide_format;
use super::view::View;
use crate::format::Format;
use crate::ir::{Graph, NodeId, Op};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub struct Region {
    /// The `put` and `cast` nodes it computes, ascending.
    pub roots: Vec<NodeId>,
    /// Buffers it reads that it does not write.
    pub reads: BTreeSet<NodeId>,
    pub layout: Layout,
    /// Computes in f64.
    pub wide: bool,
    /// A loop over a body of its own; its roots are what is taken out of it.
    pub is_loop: bool,
}

/// The domain of a region and where each value's axes lie in it.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub outer: Vec<usize>,
    pub inner: Vec<usize>,
    /// For every computed value and every read, the domain axes that each of its axes is made of, outermost first; none
    /// for extent 1.
    pub axes: BTreeMap<Site, Vec<Vec<usize>>>,
    pub product: Option<NodeId>,
}

/// A value in a region, or one particular read: two reads of a buffer may run over it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    Value(NodeId),
    Read { user: NodeId, operand: usize },
}

/// The buffer behind a chain of views, and the view of it; none if a value must be computed first.
pub fn resolve_view(graph: &Graph, id: NodeId) -> Option<(NodeId, View)> {
    let op = graph.op(id);
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
        Op::Alias { .. } => graph.inputs(id).first().map_or(id, |&x| underlying(graph, x)),
        _ => id,
    }
}

/// The region of scan nodes that run the same loop.
pub(super) fn loop_region(graph: &Graph, roots: Vec<NodeId>) -> Result<Region, String> {
    let mut reads = BTreeSet::new();
    for input in graph.inputs(roots[0]) {
        if !graph.op(input).is_buffer() {
            return Err(format!("`{}` needs `{}` in memory", graph.name_of(roots[0]), graph.name_of(input)));
        }
        reads.insert(underlying(graph, input));
    }
    Ok(Region { roots, reads, layout: Layout::default(), wide: false, is_loop: true })
}

/// A region's contents: values computed, and reads with the buffer each reaches.
struct Cone {
    values: BTreeSet<NodeId>,
    reads: BTreeMap<Site, (NodeId, View)>,
}

fn cone(graph: &Graph, roots: &[NodeId]) -> Result<Cone, String> {
    let mut cone = Cone { values: BTreeSet::new(), reads: BTreeMap::new() };
    let mut stack: Vec<NodeId> = roots.to_vec();
    while let Some(id) = stack.pop() {
        if !cone.values.insert(id) {
            continue;
        }
        let op = graph.op(id);
        for (operand, input) in graph.inputs(id).into_iter().enumerate() {
            let needs_buffer = matches!(op, Op::Concat { .. }) || op.is_product();
            let gathered = matches!(op, Op::Gather { .. }) && operand == 0;
            let found = resolve_view(graph, input).filter(|(_, v)| !gathered || v.guards.is_empty());
            let needs_buffer = needs_buffer || gathered;
            match found {
                // A register of this very kernel, if read as it was written.
                Some((buffer, _)) if roots.contains(&buffer) => {
                    if buffer != input || needs_buffer {
                        return Err(format!(
                            "`{}` reads `{}` across positions",
                            graph.name_of(id),
                            graph.name_of(buffer)
                        ));
                    }
                    stack.push(buffer);
                }
                Some(found) => {
                    cone.reads.insert(Site::Read { user: id, operand }, found);
                }
                None if needs_buffer => {
                    return Err(format!("`{}` needs `{}` in memory", graph.name_of(id), graph.name_of(input)));
                }
                None => stack.push(input),
            }
        }
    }
    Ok(cone)
}

/// Checks that the roots can be one kernel and lays out its domain. All reads of a buffer run over it in the same way if
/// they can (a maximum over a buffer, and the exponentials that use it), each in its own way if not.
pub(super) fn analyse(graph: &Graph, roots: &[NodeId], updates: &BTreeMap<NodeId, NodeId>) -> Result<Region, String> {
    lay_out(graph, roots, updates, true).or_else(|_| lay_out(graph, roots, updates, false))
}

fn lay_out(
    graph: &Graph,
    roots: &[NodeId],
    updates: &BTreeMap<NodeId, NodeId>,
    together: bool,
) -> Result<Region, String> {
    let cone = cone(graph, roots)?;
    let mut a = Axes::new(graph);
    for &v in &cone.values {
        a.add(Site::Value(v), &graph.ty(v).dims());
    }
    for &site in cone.reads.keys() {
        let Site::Read { user, operand } = site else { continue };
        a.add(site, &graph.ty(graph.inputs(user)[operand]).dims());
    }
    for &user in &cone.values {
        for (operand, input) in graph.inputs(user).into_iter().enumerate() {
            let read = Site::Read { user, operand };
            let at = if cone.reads.contains_key(&read) { read } else { Site::Value(input) };
            a.connect(user, operand, at)?;
        }
    }
    if together {
        let mut first: BTreeMap<(NodeId, &View), Site> = BTreeMap::new();
        for (&site, (buffer, view)) in cone.reads.iter().filter(|(s, _)| !is_product_operand(graph, s)) {
            let other = *first.entry((*buffer, view)).or_insert(site);
            a.unify_sites(other, site)?;
        }
    }
    let mut products: Vec<NodeId> = cone.values.iter().copied().filter(|&v| graph.op(v).is_product()).collect();
    if products.len() > 1 {
        return Err("two products".into());
    }
    let product = products.pop();

    // Every reduction over all of `inner`.
    let mut inner: Option<Vec<usize>> = None;
    for &v in &cone.values {
        let Op::Reduce { axes, .. } = graph.op(v) else { continue };
        let site = operand_site(graph, &cone, v);
        let reduced: Vec<usize> = axes.iter().flat_map(|&i| a.leaves_of(site, i)).collect();
        if reduced.is_empty() {
            continue;
        }
        match &inner {
            None => inner = Some(reduced),
            Some(seen) if seen.iter().collect::<BTreeSet<_>>() == reduced.iter().collect() => {}
            Some(_) => return Err(format!("`{}` reduces other axes than its kernel", graph.name_of(v))),
        }
    }
    let inner = inner.unwrap_or_default();
    if product.is_some() && !inner.is_empty() {
        return Err("a product and a reduction".into());
    }
    // One variable an axis: a value that runs along its own diagonal is no single loop nest.
    let mut all: BTreeSet<usize> = BTreeSet::new();
    for site in a.sites().filter(|s| !is_product_operand(graph, s)) {
        let vars = a.all_leaves(site);
        if vars.iter().collect::<BTreeSet<_>>().len() != vars.len() {
            return Err("a value meets itself along a diagonal".into());
        }
        let hidden = match site {
            Site::Read { user, operand } => hidden_axis(graph, user, operand),
            Site::Value(_) => None,
        };
        let hidden = hidden.map_or(Vec::new(), |axis| a.leaves_of(site, axis));
        all.extend(vars.into_iter().filter(|v| !hidden.contains(v)));
    }
    let widest = roots
        .iter()
        .copied()
        .max_by_key(|&r| (a.all_leaves(Site::Value(r)).len(), std::cmp::Reverse(r)))
        .ok_or("no roots")?;
    // A product's epilogue runs in the product's order, whatever order its result is stored in.
    let lead = product.unwrap_or(widest);
    let outer: Vec<usize> = a.all_leaves(Site::Value(lead)).into_iter().filter(|v| !inner.contains(v)).collect();
    let domain: BTreeSet<usize> = outer.iter().chain(&inner).copied().collect();
    if domain != all {
        return Err("no one domain covers the region".into());
    }
    for &r in roots {
        let vars: BTreeSet<usize> = a.all_leaves(Site::Value(r)).into_iter().collect();
        if vars != outer.iter().copied().collect() && vars != domain {
            return Err(format!("`{}` covers a part of the domain", graph.name_of(r)));
        }
    }
    let mut layout = Layout { product, ..Layout::default() };
    let order: Vec<usize> = outer.iter().chain(&inner).copied().collect();
    layout.outer = outer.iter().map(|&v| a.extent(v)).collect();
    layout.inner = inner.iter().map(|&v| a.extent(v)).collect();
    let place = |v: usize| order.iter().position(|&o| o == v);
    for site in a.sites() {
        let axes = (0..a.rank(site)).map(|i| a.leaves_of(site, i).into_iter().filter_map(place).collect());
        layout.axes.insert(site, axes.collect());
    }
    if let Some(p) = product
        && layout.axes[&Site::Value(p)].iter().flatten().count() != order.len()
    {
        return Err("an epilogue wider than its product".into());
    }
    // What is updated in place may be read here only at the element being written.
    for (source, root) in updates {
        if roots.contains(root) {
            let own = &layout.axes[&Site::Value(*root)];
            let aside = |(s, (b, v)): (&Site, &(NodeId, View))| {
                *b == *source && (layout.axes[s] != *own || *v != View::contiguous(&graph.ty(*source).dims()))
            };
            if cone.reads.iter().any(aside) {
                return Err("an in-place update read at another position".into());
            }
        }
    }
    let reads = cone.reads.values().map(|(b, _)| *b).collect();
    let wide = cone.values.iter().any(|&v| needs_wide(graph, v));
    Ok(Region { roots: roots.to_vec(), reads, layout, wide, is_loop: false })
}

/// Does a value take more than f32 holds? Positions, labels and indices, which are only compared or looked up, do not.
fn needs_wide(graph: &Graph, id: NodeId) -> bool {
    let ty = graph.ty(id);
    let position = |id: NodeId| matches!(graph.op(id), Op::Iota { .. } | Op::Const(_));
    let whole = |id: NodeId| is_wide_format(graph.ty(id).format) && graph.ty(id).format.is_integer();
    match graph.op(id) {
        Op::Iota { .. } => false,
        Op::Binary(b) if b.is_comparison() => {
            let x = graph.inputs(id);
            x.iter().all(|&i| whole(i) && !position(i)) || x.iter().any(|&i| graph.ty(i).format == Format::F64)
        }
        op if op.is_view() && whole(id) => false,
        _ => is_wide_format(ty.format),
    }
}

fn is_product_operand(graph: &Graph, site: &Site) -> bool {
    matches!(site, Site::Read { user, .. } if graph.op(*user).is_product())
}

/// The axis a load moves along by itself, not by the domain: a gather's, a concatenation's.
pub(super) fn hidden_axis(graph: &Graph, user: NodeId, operand: usize) -> Option<usize> {
    match graph.op(user) {
        Op::Gather { axis } if operand == 0 => Some(*axis),
        Op::Concat { axis } => Some(*axis),
        _ => None,
    }
}

fn operand_site(graph: &Graph, cone: &Cone, v: NodeId) -> Site {
    let read = Site::Read { user: v, operand: 0 };
    if cone.reads.contains_key(&read) { read } else { Site::Value(graph.inputs(v)[0]) }
}
