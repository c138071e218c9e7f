//! Whether what lies between some buffers is one loop nest, and where each value's axes lie in it.

use super::{Analyser, Cone, Layout, Region};
use crate::format::Format;
use crate::ir::{Graph, NodeId, Op};
use crate::lower::axes::{Axes, Site};
use crate::lower::view::View;
use std::collections::BTreeMap;

impl Analyser<'_> {
    /// The axes of a cone's sites, identified as its operations say.
    pub(super) fn axes(&self, cone: &Cone, together: bool) -> Result<Axes, String> {
        let graph = self.graph;
        let mut a = Axes::with_capacity(cone.values.len() + cone.reads.len());
        for &v in &cone.values {
            a.add(Site::Value(v), &graph.ty(v).dims());
        }
        for &(site, _) in &cone.reads {
            let Site::Read { user, operand } = site else { continue };
            a.add(site, &graph.ty(self.graph.inputs(user)[operand]).dims());
        }
        for &user in &cone.values {
            for (operand, &input) in self.graph.inputs(user).iter().enumerate() {
                // Arithmetic on scalars has no axes.
                if graph.op(user).is_elementwise() && graph.shape(user).rank() == 0 {
                    continue;
                }
                let read = Site::Read { user, operand };
                let at = if cone.is_read(read) { read } else { Site::Value(input) };
                a.connect(graph, user, operand, at)?;
            }
        }
        if together {
            let mut first: BTreeMap<&(NodeId, View), Site> = BTreeMap::new();
            for &(site, found) in cone.reads.iter().filter(|r| !is_product_operand(graph, r.0)) {
                let other = *first.entry(found).or_insert(site);
                a.unify_sites(other, site)?;
            }
        }
        Ok(a)
    }

    pub(super) fn lay_out(&self, roots: &[NodeId], cone: &Cone, together: bool) -> Result<Region, String> {
        let graph = self.graph;
        let a = self.axes(cone, together)?;
        let mut products = cone.values.iter().copied().filter(|&v| graph.op(v).is_product());
        let product = products.next();
        if products.next().is_some() {
            return Err("two products".into());
        }

        let (inner, reductions) = self.reduced(cone, &a)?;
        if product.is_some() && !inner.is_empty() {
            return Err("a product and a reduction".into());
        }
        let all = self.run_along(&a)?;
        let leaves = |r: NodeId| if graph.shape(r).rank() == 0 { Vec::new() } else { a.all_leaves(Site::Value(r)) };
        let widest =
            roots.iter().copied().max_by_key(|&r| (leaves(r).len(), std::cmp::Reverse(r))).ok_or("no roots")?;
        // A product's epilogue runs in the product's order, whatever order its result is stored in.
        let lead = product.unwrap_or(widest);
        let outer: Vec<usize> = a.all_leaves(Site::Value(lead)).into_iter().filter(|v| !inner.contains(v)).collect();
        let order = [&outer[..], &inner].concat();
        if order.iter().any(|&v| !all[v]) || all.iter().filter(|&&x| x).count() != order.len() {
            return Err("no one domain covers the region".into());
        }
        for &r in roots {
            let vars = leaves(r);
            if !is_same_set(&vars, &outer) && !is_same_set(&vars, &order) {
                return Err(format!("`{}` covers a part of the domain", graph.name_of(r)));
            }
        }
        let extents = |of: &[usize]| of.iter().map(|&v| a.extent(v)).collect();
        let mut layout = Layout {
            outer: extents(&outer),
            inner: extents(&inner),
            axes: a,
            place: Vec::new(),
            product,
            aligned: None,
            is_stale: false,
        };
        layout.place = vec![None; layout.axes.variables()];
        order.iter().enumerate().for_each(|(i, &v)| layout.place[v] = Some(i));
        if let Some(p) = product
            && layout.all_axes(Site::Value(p)).len() != order.len()
        {
            return Err("an epilogue wider than its product".into());
        }
        if roots.iter().any(|&root| self.is_read_aside(root, cone, &layout)) {
            return Err("an in-place update read at another position".into());
        }
        let shape = graph.ty(roots[0]).dims();
        let one_shape = roots.iter().all(|&r| graph.ty(r).dims() == shape);
        let elementwise = one_shape
            && cone.values.iter().all(|&v| is_aligned(graph.op(v)))
            && cone.reads.iter().all(|(_, (buffer, view))| is_plain(view, &graph.ty(*buffer).dims()));
        let single = order.is_empty()
            && cone.values.iter().all(|&v| is_of_one(graph.op(v)))
            && cone.reads.iter().all(|(_, (_, view))| view.guards.is_empty());
        layout.aligned = if single { Some(Vec::new()) } else { elementwise.then_some(shape) };
        let reads = cone.reads.iter().map(|r| r.1.0).collect();
        let waits = self.waits(cone).collect();
        let wide = cone.values.iter().any(|&v| needs_wide(graph, v));
        Ok(Region { roots: roots.to_vec(), reads, waits, layout, wide, reductions, is_loop: false })
    }

    /// The variables that all reductions of a kernel go over, and how many reductions there are.
    fn reduced(&self, cone: &Cone, a: &Axes) -> Result<(Vec<usize>, usize), String> {
        let graph = self.graph;
        let mut inner: Option<Vec<usize>> = None;
        let mut reductions = 0;
        for &v in &cone.values {
            let Op::Reduce { axes, .. } = graph.op(v) else { continue };
            let read = Site::Read { user: v, operand: 0 };
            let site = if cone.is_read(read) { read } else { Site::Value(graph.inputs(v)[0]) };
            let reduced: Vec<usize> = axes.iter().flat_map(|&i| a.leaves_of(site, i)).collect();
            if reduced.is_empty() {
                continue;
            }
            reductions += 1;
            match &inner {
                None => inner = Some(reduced),
                Some(seen) if is_same_set(seen, &reduced) => {}
                Some(_) => return Err(format!("`{}` reduces other axes than its kernel", graph.name_of(v))),
            }
        }
        Ok((inner.unwrap_or_default(), reductions))
    }

    /// The variables that values run along. One variable an axis: a value that runs along its own diagonal is no single loop
    /// nest.
    fn run_along(&self, a: &Axes) -> Result<Vec<bool>, String> {
        let graph = self.graph;
        let mut all = vec![false; a.variables()];
        let mut last_seen = vec![usize::MAX; a.variables()];
        let mut vars = Vec::new();
        let sites = a.sites().enumerate().filter(|(_, s)| !s.1.is_empty() && !is_product_operand(graph, s.0));
        for (n, (site, places)) in sites {
            let hidden = match site {
                Site::Read { user, operand } => hidden_axis(graph, user, operand),
                Site::Value(_) => None,
            };
            for (axis, place) in places.enumerate() {
                vars.clear();
                a.add_leaves(place, &mut vars);
                for &v in &vars {
                    if std::mem::replace(&mut last_seen[v], n) == n {
                        return Err("a value meets itself along a diagonal".into());
                    }
                    all[v] |= hidden != Some(axis);
                }
            }
        }
        Ok(all)
    }

    /// Is a source that `root` updates in place read anywhere but at the element being written?
    fn is_read_aside(&self, root: NodeId, cone: &Cone, layout: &Layout) -> bool {
        let graph = self.graph;
        // A kernel of single numbers has but one position, whatever the rank it is read in.
        let of_one = layout.outer.is_empty() && layout.inner.is_empty();
        let own = layout.axes_of(Site::Value(root));
        self.updates.get(&root).into_iter().flatten().any(|source| {
            cone.reads.iter().any(|(s, (b, v))| {
                let here = || layout.axes_of(*s) == own && *v == View::contiguous(&graph.ty(*source).dims());
                b == source && !(of_one && v.guards.is_empty()) && !here()
            })
        })
    }
}

/// Do two lists, neither with repetitions, hold the same?
fn is_same_set(a: &[usize], b: &[usize]) -> bool {
    a.len() == b.len() && a.iter().all(|x| b.contains(x))
}

/// Does an operation take its operands' elements from where its own are, counted from the last axis?
fn is_aligned(op: &Op) -> bool {
    op.is_elementwise() || matches!(op, Op::Put(_) | Op::Cast(_) | Op::Broadcast { .. })
}

/// Does an operation make one number of one number of each operand, whatever their ranks?
fn is_of_one(op: &Op) -> bool {
    is_aligned(op) || op.is_view() || matches!(op, Op::Reduce { .. })
}

/// Is this a view of a whole buffer of these dims, at most broadcast?
fn is_plain(view: &View, dims: &[usize]) -> bool {
    let fits = |(&have, &want): (&usize, &usize)| have == want || have == 1;
    dims.len() <= view.dims.len()
        && dims.iter().rev().zip(view.dims.iter().rev()).all(fits)
        && *view == View::contiguous(dims).broadcast(&view.dims)
}

/// Does a value take more than f32 holds? Positions, labels and indices, which are only compared or looked up, do not.
pub(super) fn needs_wide(graph: &Graph, id: NodeId) -> bool {
    let ty = graph.ty(id);
    let whole = |id: NodeId| graph.ty(id).format.is_wide() && graph.ty(id).format.is_integer();
    match graph.op(id) {
        _ if whole(id) && is_position(graph, id) => false,
        Op::Binary(b) if b.is_comparison() => {
            let x = graph.inputs(id);
            x.iter().all(|&i| whole(i) && !is_position(graph, i))
                || x.iter().any(|&i| graph.ty(i).format == Format::F64)
        }
        op if op.is_view() && whole(id) => false,
        _ => ty.format.is_wide(),
    }
}

/// Is this a position or a constant, stored or shown in another shape perhaps?
fn is_position(graph: &Graph, mut id: NodeId) -> bool {
    while graph.op(id).is_view() || matches!(graph.op(id), Op::Put(_) | Op::Cast(_)) {
        id = graph.inputs(id)[0];
    }
    matches!(graph.op(id), Op::Iota { .. } | Op::Const(_))
}

fn is_product_operand(graph: &Graph, site: Site) -> bool {
    matches!(site, Site::Read { user, .. } if graph.op(user).is_product())
}

/// The axis a load moves along by itself, not by the domain: a gather's, a concatenation's.
pub(in crate::lower) fn hidden_axis(graph: &Graph, user: NodeId, operand: usize) -> Option<usize> {
    match graph.op(user) {
        Op::Gather { axis } if operand == 0 => Some(*axis),
        Op::Concat { axis } => Some(*axis),
        _ => None,
    }
}
