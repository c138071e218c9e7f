//! What shares a kernel.
//!
//! A region is a set of buffers written by one kernel, with everything between them and the buffers they are computed
//! from. Whether that can be one kernel is decided by *axis unification*: every axis of every value in the region gets
//! a variable, operations identify variables (elementwise ones align them, a reduction marks some as reduced), and the
//! region is a kernel if what comes out is one domain `outer × inner` with every reduction over the whole of `inner`.

use super::view::View;
use crate::ir::{Graph, NodeId, Op, Role};
use std::collections::{BTreeMap, BTreeSet};

/// Regions of a planned, expanded graph, in an order that respects reads and in-place updates.
pub struct Regions {
    pub regions: Vec<Region>,
    /// Updates that must go through a copy at the end of the step, because a later kernel still reads the old value.
    pub shadowed: BTreeSet<String>,
}

#[derive(Clone, Debug)]
pub struct Region {
    /// The `put` and `cast` nodes it computes, ascending.
    pub roots: Vec<NodeId>,
    /// Buffers it reads that it does not write.
    pub reads: BTreeSet<NodeId>,
    pub layout: Layout,
}

/// The domain of a region and where each value's axes lie in it.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub outer: Vec<usize>,
    pub inner: Vec<usize>,
    /// For every computed value and every read, the domain axis of each of its axes; none for extent 1.
    pub axes: BTreeMap<Site, Vec<Option<usize>>>,
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
    if op.is_buffer() {
        return Some((id, View::contiguous(&graph.ty(id).dims())));
    }
    if !op.is_view() {
        return None;
    }
    let (buffer, view) = resolve_view(graph, *graph.inputs(id).first()?)?;
    let dims = graph.ty(id).dims();
    let view = match op {
        Op::Broadcast { .. } => view.broadcast(&dims),
        Op::Transpose { perm } => view.transpose(perm),
        Op::Slice { axis, start, stop, step } => view.slice(*axis, *start, *stop, *step),
        Op::Reshape { .. } => view.reshape(&dims)?,
        _ => return None,
    };
    Some((buffer, view))
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
            let needs_buffer = matches!(op, Op::Pad { .. } | Op::Concat { .. } | Op::MatMul { .. })
                || (matches!(op, Op::Gather { .. }) && operand == 0);
            match resolve_view(graph, input) {
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

/// Union-find over axis variables.
struct Axes<'a> {
    graph: &'a Graph,
    parent: Vec<usize>,
    extent: Vec<usize>,
    of: BTreeMap<Site, Vec<Option<usize>>>,
}

impl Axes<'_> {
    fn site(&mut self, site: Site, dims: &[usize]) {
        let vars = dims
            .iter()
            .map(|&d| {
                (d != 1).then(|| {
                    self.parent.push(self.parent.len());
                    self.extent.push(d);
                    self.parent.len() - 1
                })
            })
            .collect();
        self.of.insert(site, vars);
    }

    fn find(&self, mut v: usize) -> usize {
        while self.parent[v] != v {
            v = self.parent[v];
        }
        v
    }

    fn unify(&mut self, a: Option<usize>, b: Option<usize>) -> Result<(), String> {
        let (Some(a), Some(b)) = (a, b) else { return Ok(()) };
        let (a, b) = (self.find(a), self.find(b));
        if self.extent[a] != self.extent[b] {
            return Err(format!("axes of extents {} and {} meet", self.extent[a], self.extent[b]));
        }
        self.parent[a.max(b)] = a.min(b);
        Ok(())
    }

    /// Identifies the axes of an operand with those of its user, as the user's operation says.
    fn connect(&mut self, user: NodeId, operand: usize, at: Site) -> Result<(), String> {
        let (y, x) = (self.of[&Site::Value(user)].clone(), self.of[&at].clone());
        let aligned = |x: &[Option<usize>], y: &[Option<usize>]| -> Vec<_> {
            x.iter().rev().copied().zip(y.iter().rev().copied()).collect()
        };
        let pairs = match self.graph.op(user) {
            Op::Transpose { perm } => perm.iter().map(|&p| x[p]).zip(y).collect(),
            Op::Reduce { axes, keep, .. } => {
                let mut result = y.into_iter();
                let mut pairs = Vec::new();
                for (i, &v) in x.iter().enumerate() {
                    match (axes.contains(&i), keep) {
                        (false, _) => pairs.push((v, result.next().flatten())),
                        (true, true) => {
                            result.next();
                        }
                        (true, false) => {}
                    }
                }
                pairs
            }
            Op::Reshape { .. } => {
                let some = |v: &[Option<usize>]| v.iter().flatten().copied().collect::<Vec<_>>();
                let (x, y) = (some(&x), some(&y));
                if x.len() != y.len() || x.iter().zip(&y).any(|(&a, &b)| self.extent[a] != self.extent[b]) {
                    return Err(format!("`{}` regroups axes of a value in registers", self.graph.name_of(user)));
                }
                x.into_iter().map(Some).zip(y.into_iter().map(Some)).collect()
            }
            Op::Slice { .. } => return Err(format!("`{}` slices a value in registers", self.graph.name_of(user))),
            // Axes are connected when loads are emitted: the index's to the result's, the rest by position.
            Op::Gather { axis } if operand == 1 => x.iter().copied().zip(y[*axis..].iter().copied()).collect(),
            Op::Gather { axis } => {
                let rank = y.len() + 1 - x.len();
                let lead = x[..*axis].iter().copied().zip(y[..*axis].iter().copied());
                lead.chain(x[axis + 1..].iter().copied().zip(y[axis + rank..].iter().copied())).collect()
            }
            Op::ScatterAdd { .. } => return Err("scatter_add is lowered as a reduction".into()),
            Op::Pad { axis, .. } | Op::Concat { axis } => {
                x.iter().copied().zip(y).enumerate().filter(|(i, _)| i != axis).map(|(_, p)| p).collect()
            }
            Op::MatMul { .. } => Vec::new(),
            _ => aligned(&x, &y),
        };
        pairs.into_iter().try_for_each(|(a, b)| self.unify(a, b))
    }
}

/// Checks that the roots can be one kernel and lays out its domain. All reads of a buffer run over it in the same way if
/// they can (a maximum over a buffer, and the exponentials that use it), each in its own way if not.
fn analyse(graph: &Graph, roots: &[NodeId], updates: &BTreeMap<NodeId, NodeId>) -> Result<Region, String> {
    lay_out(graph, roots, updates, true).or_else(|_| lay_out(graph, roots, updates, false))
}

fn lay_out(
    graph: &Graph,
    roots: &[NodeId],
    updates: &BTreeMap<NodeId, NodeId>,
    together: bool,
) -> Result<Region, String> {
    let cone = cone(graph, roots)?;
    let mut a = Axes { graph, parent: Vec::new(), extent: Vec::new(), of: BTreeMap::new() };
    for &v in &cone.values {
        a.site(Site::Value(v), &graph.ty(v).dims());
    }
    for &site in cone.reads.keys() {
        let Site::Read { user, operand } = site else { continue };
        a.site(site, &graph.ty(graph.inputs(user)[operand]).dims());
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
        for (&site, (buffer, view)) in cone.reads.iter().filter(|(s, _)| !is_matrix_operand(graph, s)) {
            let other = *first.entry((*buffer, view)).or_insert(site);
            let (x, y) = (a.of[&other].clone(), a.of[&site].clone());
            x.into_iter().zip(y).try_for_each(|(p, q)| a.unify(p, q))?;
        }
    }
    let mut products: Vec<NodeId> =
        cone.values.iter().copied().filter(|&v| matches!(graph.op(v), Op::MatMul { .. })).collect();
    if products.len() > 1 {
        return Err("two products".into());
    }
    let product = products.pop();
    let set = |a: &Axes, site: Site| -> Vec<usize> { a.of[&site].iter().flatten().map(|&v| a.find(v)).collect() };

    // Every reduction over all of `inner`.
    let mut inner: Option<Vec<usize>> = None;
    for &v in &cone.values {
        let Op::Reduce { axes, .. } = graph.op(v) else { continue };
        let site = operand_site(graph, &cone, v);
        let reduced: Vec<usize> = axes.iter().filter_map(|&i| a.of[&site][i]).map(|x| a.find(x)).collect();
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
    for site in a.of.keys().filter(|s| !is_matrix_operand(graph, s)) {
        let vars = set(&a, *site);
        if vars.iter().collect::<BTreeSet<_>>().len() != vars.len() {
            return Err("a value meets itself along a diagonal".into());
        }
        let hidden = match site {
            Site::Read { user, operand } => hidden_axis(graph, *user, *operand),
            Site::Value(_) => None,
        };
        let hidden = hidden.and_then(|axis| a.of[site][axis]).map(|v| a.find(v));
        all.extend(vars.into_iter().filter(|v| Some(*v) != hidden));
    }
    let widest = roots
        .iter()
        .copied()
        .max_by_key(|&r| (set(&a, Site::Value(r)).len(), std::cmp::Reverse(r)))
        .ok_or("no roots")?;
    // A product's epilogue runs in the product's order, whatever order its result is stored in.
    let lead = product.unwrap_or(widest);
    let outer: Vec<usize> = set(&a, Site::Value(lead)).into_iter().filter(|v| !inner.contains(v)).collect();
    let domain: BTreeSet<usize> = outer.iter().chain(&inner).copied().collect();
    if domain != all {
        return Err("no one domain covers the region".into());
    }
    for &r in roots {
        let vars: BTreeSet<usize> = set(&a, Site::Value(r)).into_iter().collect();
        if vars != outer.iter().copied().collect() && vars != domain {
            return Err(format!("`{}` covers a part of the domain", graph.name_of(r)));
        }
    }
    let mut layout = Layout { product, ..Layout::default() };
    // A product keeps its axes of extent 1, so that its epilogue is indexed as the product is.
    let order: Vec<usize> = outer.iter().chain(&inner).copied().collect();
    layout.outer = outer.iter().map(|&v| a.extent[v]).collect();
    layout.inner = inner.iter().map(|&v| a.extent[v]).collect();
    for (site, vars) in &a.of {
        let place = |v: &Option<usize>| v.and_then(|v| order.iter().position(|&o| o == a.find(v)));
        layout.axes.insert(*site, vars.iter().map(place).collect());
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
    Ok(Region { roots: roots.to_vec(), reads, layout })
}

fn is_matrix_operand(graph: &Graph, site: &Site) -> bool {
    matches!(site, Site::Read { user, .. } if matches!(graph.op(*user), Op::MatMul { .. }))
}

/// The axis a load moves along by itself, not by the domain: a gather's, a concatenation's, a pad's.
pub(super) fn hidden_axis(graph: &Graph, user: NodeId, operand: usize) -> Option<usize> {
    match graph.op(user) {
        Op::Gather { axis } if operand == 0 => Some(*axis),
        Op::Pad { axis, .. } | Op::Concat { axis } => Some(*axis),
        _ => None,
    }
}

fn operand_site(graph: &Graph, cone: &Cone, v: NodeId) -> Site {
    let read = Site::Read { user: v, operand: 0 };
    if cone.reads.contains_key(&read) { read } else { Site::Value(graph.inputs(v)[0]) }
}

/// Cuts an expanded graph into regions: one per buffer, then merged greedily while legal, producers and siblings first.
pub fn regions(graph: &Graph) -> Result<Regions, String> {
    let updates = in_place(graph);
    let roots: Vec<NodeId> = graph.ids().filter(|&id| matches!(graph.op(id), Op::Put(_) | Op::Cast(_))).collect();
    let mut regions: Vec<Region> = Vec::new();
    for &r in &roots {
        let region = analyse(graph, &[r], &updates)?;
        // Buffers fed by one product are one kernel: products are never computed twice.
        let twin = region.layout.product.and_then(|p| regions.iter().position(|o| o.layout.product == Some(p)));
        match twin {
            Some(i) => {
                let mut both = regions[i].roots.clone();
                both.push(r);
                regions[i] = analyse(graph, &both, &updates)?;
            }
            None => regions.push(region),
        }
    }
    let mut shadowed = BTreeSet::new();
    let mut links = Links::new(graph, &regions, &updates, &mut shadowed);
    let mut i = 0;
    while i < regions.len() {
        let target = (0..i).rev().find_map(|j| {
            if !worth_merging(graph, &regions[j], &regions[i]) {
                return None;
            }
            if links.path_through_another(i, j) || links.path_through_another(j, i) {
                return None;
            }
            let mut both = [&regions[j].roots[..], &regions[i].roots].concat();
            both.sort_unstable();
            analyse(graph, &both, &updates).ok().map(|merged| (j, merged))
        });
        match target {
            Some((j, merged)) => {
                regions[j] = merged;
                regions.remove(i);
                links = Links::new(graph, &regions, &updates, &mut shadowed);
            }
            None => i += 1,
        }
    }
    let order = links.order().ok_or("a kernel would need its own result")?;
    Ok(Regions { regions: order.into_iter().map(|i| regions[i].clone()).collect(), shadowed })
}

/// Each updated source and the buffer that becomes its next value.
fn in_place(graph: &Graph) -> BTreeMap<NodeId, NodeId> {
    let updates = graph.outputs().iter().filter(|o| o.role == Role::Update);
    updates.filter_map(|o| Some((graph.find(&o.name)?, o.node))).collect()
}

/// Two regions are worth one kernel if one reads what the other writes, if both read a large buffer, or if both are
/// scalar work. Reductions to a scalar keep to themselves: many blocks share one, and what follows must wait for all.
fn worth_merging(graph: &Graph, a: &Region, b: &Region) -> bool {
    let total = |r: &Region| r.layout.outer.is_empty() && !r.layout.inner.is_empty();
    if total(a) != total(b) {
        return false;
    }
    if b.reads.iter().any(|r| a.roots.contains(r)) || a.reads.iter().any(|r| b.roots.contains(r)) {
        return true;
    }
    let scalar = |r: &Region| r.layout.outer.is_empty() && r.layout.inner.is_empty();
    if scalar(a) && scalar(b) {
        return true;
    }
    if a.layout.product.is_some() || b.layout.product.is_some() {
        return false;
    }
    let domain = |r: &Region| r.layout.outer.iter().chain(&r.layout.inner).product::<usize>();
    let elements = domain(a);
    elements == domain(b) && a.reads.intersection(&b.reads).any(|&s| graph.ty(s).elements() == elements)
}

/// Which region must run before which.
struct Links {
    before: Vec<BTreeSet<usize>>,
}

impl Links {
    fn new(
        graph: &Graph,
        regions: &[Region],
        updates: &BTreeMap<NodeId, NodeId>,
        shadowed: &mut BTreeSet<String>,
    ) -> Links {
        let writer: BTreeMap<NodeId, usize> =
            regions.iter().enumerate().flat_map(|(i, r)| r.roots.iter().map(move |&n| (n, i))).collect();
        let mut before = vec![BTreeSet::new(); regions.len()];
        for (i, r) in regions.iter().enumerate() {
            before[i].extend(r.reads.iter().filter_map(|b| writer.get(b)).filter(|&&w| w != i));
        }
        let mut links = Links { before };
        for (source, root) in updates {
            let name = graph.name_of(*source);
            let Some(&w) = writer.get(root) else { continue };
            let readers: Vec<usize> =
                (0..regions.len()).filter(|&i| i != w && regions[i].reads.contains(source)).collect();
            if shadowed.contains(name) || readers.iter().any(|&r| links.reaches(w, r)) {
                shadowed.insert(name.to_owned());
                continue;
            }
            links.before[w].extend(readers);
        }
        links
    }

    /// Does `from` run, directly or not, before `to`?
    fn reaches(&self, from: usize, to: usize) -> bool {
        let mut seen = vec![false; self.before.len()];
        let mut stack = vec![to];
        while let Some(i) = stack.pop() {
            if i == from {
                return true;
            }
            if !std::mem::replace(&mut seen[i], true) {
                stack.extend(self.before[i].iter().copied());
            }
        }
        false
    }

    /// Is there a way from `from` to `to` that visits a third region?
    fn path_through_another(&self, to: usize, from: usize) -> bool {
        self.before[to].iter().any(|&mid| mid != from && self.reaches(from, mid))
    }

    /// A topological order, smallest index first; none if there is a cycle (a product's value passed to a later kernel).
    fn order(&self) -> Option<Vec<usize>> {
        let mut done = vec![false; self.before.len()];
        let mut out = Vec::with_capacity(self.before.len());
        while let Some(i) = (0..self.before.len()).find(|&i| !done[i] && self.before[i].iter().all(|&b| done[b])) {
            done[i] = true;
            out.push(i);
        }
        (out.len() == self.before.len()).then_some(out)
    }
}
