//! Cutting a planned graph into kernels: one region per buffer, then merged greedily while legal, producers first.

use super::region::{Analyser, Region, Site, loop_region};
use crate::ir::{Graph, NodeId, Op, Role, Stage};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Regions of a planned, expanded graph, in an order that respects reads and in-place updates.
pub struct Regions {
    pub regions: Vec<Region>,
    /// Updates that must go through a copy at the end of the step, because a later kernel still reads the old value.
    pub shadowed: BTreeSet<String>,
}

/// Cuts an expanded graph into regions.
pub fn regions(graph: &Graph) -> Result<Regions, String> {
    let updates = in_place(graph);
    let analyser = Analyser::new(graph, &updates);
    let first = first_regions(graph, &analyser)?;
    let mut merger = Merger::new(graph, &updates, analyser, first);
    let shadowed = merger.order_updates();
    let order = merger.order().ok_or("a kernel would need its own result")?;
    order.into_iter().enumerate().for_each(|(place, i)| merger.place[i] = place);
    for i in 0..merger.regions.len() {
        // What a merged region reads may come from another partner still.
        let mut at = i;
        while let Some(j) = merger.partners(at).into_iter().find(|&j| merger.merge(j, at)) {
            at = j;
        }
    }
    let order = merger.order().expect("merging closes no circle");
    let regions = order.into_iter().filter_map(|i| merger.regions[i].take()).collect();
    Ok(Regions { regions, shadowed })
}

/// A region for every stored buffer; buffers fed by one product share theirs, because products are never computed twice.
fn first_regions(graph: &Graph, analyser: &Analyser) -> Result<Vec<Region>, String> {
    let mut regions: Vec<Region> = Vec::new();
    let mut of_product: BTreeMap<NodeId, usize> = BTreeMap::new();
    for r in graph.ids().filter(|&id| matches!(graph.op(id), Op::Put(_) | Op::Cast(_))) {
        let region = analyser.region(&[r])?;
        match region.layout.product.and_then(|p| of_product.get(&p)) {
            Some(&i) => {
                let both = [&regions[i].roots[..], &[r]].concat();
                regions[i] = analyser.region(&both)?;
            }
            None => {
                if let Some(p) = region.layout.product {
                    of_product.insert(p, regions.len());
                }
                regions.push(region);
            }
        }
    }
    for id in graph.ids().filter(|&id| matches!(graph.op(id), Op::Scan(_))) {
        let roots = graph.same_loop(id);
        if roots.first() == Some(&id) {
            regions.push(loop_region(graph, roots)?);
        }
    }
    Ok(regions)
}

/// Each updated source and the buffer that becomes its next value.
fn in_place(graph: &Graph) -> BTreeMap<NodeId, NodeId> {
    let updates = graph.outputs().iter().filter(|o| o.role == Role::Update);
    updates.filter_map(|o| Some((graph.find(&o.name)?, o.node))).collect()
}

/// Readers of readers that are looked at, at most.
const CHAIN: usize = 24;

/// Regions under merging, and which must run before which.
struct Merger<'a> {
    graph: &'a Graph,
    updates: &'a BTreeMap<NodeId, NodeId>,
    analyser: Analyser<'a>,
    regions: Vec<Option<Region>>,
    before: Vec<BTreeSet<usize>>,
    after: Vec<BTreeSet<usize>>,
    writer: BTreeMap<NodeId, usize>,
    readers: BTreeMap<NodeId, BTreeSet<usize>>,
    scalars: BTreeSet<usize>,
    /// Where each region comes in an order that agrees with `before`.
    place: Vec<usize>,
    /// When each region was last seen by a search.
    seen: Vec<usize>,
    searches: usize,
}

impl<'a> Merger<'a> {
    fn new(
        graph: &'a Graph,
        updates: &'a BTreeMap<NodeId, NodeId>,
        analyser: Analyser<'a>,
        regions: Vec<Region>,
    ) -> Merger<'a> {
        let n = regions.len();
        let mut m = Merger {
            graph,
            updates,
            analyser,
            regions: regions.into_iter().map(Some).collect(),
            before: vec![BTreeSet::new(); n],
            after: vec![BTreeSet::new(); n],
            writer: BTreeMap::new(),
            readers: BTreeMap::new(),
            scalars: BTreeSet::new(),
            place: vec![0; n],
            seen: vec![0; n],
            searches: 0,
        };
        for (i, r) in m.regions.iter().enumerate() {
            let Some(r) = r else { continue };
            r.roots.iter().for_each(|&b| {
                m.writer.insert(b, i);
            });
            r.reads.iter().for_each(|&b| {
                m.readers.entry(b).or_default().insert(i);
            });
            if is_scalar(r) {
                m.scalars.insert(i);
            }
        }
        for i in 0..n {
            let from: Vec<usize> =
                m.region(i).reads.iter().filter_map(|b| m.writer.get(b).copied()).filter(|&w| w != i).collect();
            from.into_iter().for_each(|w| m.link(w, i));
        }
        m
    }

    fn region(&self, i: usize) -> &Region {
        self.regions[i].as_ref().expect("only live regions are asked for")
    }

    fn link(&mut self, first: usize, then: usize) {
        self.before[then].insert(first);
        self.after[first].insert(then);
    }

    /// Makes the kernel of an in-place update wait for all readers of the old value. An update that a reader itself waits
    /// for cannot be in place.
    fn order_updates(&mut self) -> BTreeSet<String> {
        let mut shadowed = BTreeSet::new();
        for (source, root) in self.updates {
            let Some(&w) = self.writer.get(root) else { continue };
            let readers: Vec<usize> =
                self.readers.get(source).into_iter().flatten().copied().filter(|&r| r != w).collect();
            if readers.iter().any(|&r| self.reaches(w, r, &[])) {
                shadowed.insert(self.graph.name_of(*source).to_owned());
            } else {
                readers.into_iter().for_each(|r| self.link(r, w));
            }
        }
        shadowed
    }

    /// Is there a way from `from` to `to` through something else than `skipped`? A direct step does not count if `from` is
    /// among these.
    fn reaches(&mut self, from: usize, to: usize, skipped: &[usize]) -> bool {
        self.searches += 1;
        let first = self.place[from];
        let mut stack: Vec<usize> = self.before[to].iter().copied().filter(|m| !skipped.contains(m)).collect();
        while let Some(i) = stack.pop() {
            if i == from {
                return true;
            }
            // What comes before `from` does not wait for it.
            if self.place[i] >= first
                && !skipped.contains(&i)
                && std::mem::replace(&mut self.seen[i], self.searches) != self.searches
            {
                stack.extend(self.before[i].iter().copied());
            }
        }
        false
    }

    /// Finds a place for what `i` and `j` become together, between all that it waits for and all that waits for it. Only
    /// places between those of `i` and `j` change hands (Pearce and Kelly, *A Dynamic Topological Sort Algorithm*, 2006).
    fn make_room(&mut self, j: usize, i: usize) {
        let (first, last) = if self.place[j] < self.place[i] { (j, i) } else { (i, j) };
        let (low, high) = (self.place[first], self.place[last]);
        let mut near = |links: &[BTreeSet<usize>], from: usize, place: &[usize]| {
            self.searches += 1;
            let (mut stack, mut out) = (vec![from], Vec::new());
            while let Some(at) = stack.pop() {
                for &next in links[at].iter().filter(|&&n| low < place[n] && place[n] < high) {
                    if std::mem::replace(&mut self.seen[next], self.searches) != self.searches {
                        out.push(next);
                        stack.push(next);
                    }
                }
            }
            out.sort_unstable_by_key(|&n| place[n]);
            out
        };
        let earlier = near(&self.before, last, &self.place);
        let later = near(&self.after, first, &self.place);
        let moved = earlier.into_iter().chain([first, last]).chain(later).collect::<Vec<_>>();
        let mut places: Vec<usize> = moved.iter().map(|&n| self.place[n]).collect();
        places.sort_unstable();
        moved.into_iter().zip(places).for_each(|(n, place)| self.place[n] = place);
    }

    /// Earlier regions that might share a kernel with region `i`, nearest first.
    fn partners(&self, i: usize) -> Vec<usize> {
        let Some(r) = &self.regions[i] else { return Vec::new() };
        let mut out: BTreeSet<usize> = BTreeSet::new();
        out.extend(r.reads.iter().filter_map(|b| self.writer.get(b)));
        out.extend(r.roots.iter().filter_map(|b| self.readers.get(b)).flatten());
        let elements = domain(r);
        let large = r.reads.iter().filter(|&&b| self.graph.ty(b).elements() == elements);
        out.extend(large.filter_map(|b| self.readers.get(b)).flatten());
        if is_scalar(r) {
            out.extend(&self.scalars);
        }
        out.range(..i).rev().copied().collect()
    }

    /// Merges region `i` into the earlier `j` if that is legal and worth it.
    fn merge(&mut self, j: usize, i: usize) -> bool {
        let (a, b) = (self.region(j), self.region(i));
        if !worth_merging(self.graph, a, b) {
            return false;
        }
        let mut both = [&a.roots[..], &b.roots].concat();
        both.sort_unstable();
        let already_wide = wide_reduction(a) || wide_reduction(b);
        if self.reaches(j, i, &[j]) || self.reaches(i, j, &[i]) || self.parts_from_reader(j, i) {
            return false;
        }
        let Ok(merged) = self.analyser.region(&both) else { return false };
        if is_strided(&merged) && !is_strided(self.region(i)) && !is_strided(self.region(j)) {
            return false;
        }
        // Wide registers are for what needs them; a reduction that does not is not made to wait for them.
        if wide_reduction(&merged) && !already_wide {
            return false;
        }
        let old = [self.regions[j].take(), self.regions[i].take()];
        for (at, r) in [j, i].into_iter().zip(old.iter().flatten()) {
            for b in &r.reads {
                if let Some(readers) = self.readers.get_mut(b) {
                    readers.remove(&at);
                }
            }
        }
        merged.reads.iter().for_each(|b| {
            self.readers.entry(*b).or_default().insert(j);
        });
        merged.roots.iter().for_each(|b| {
            self.writer.insert(*b, j);
        });
        self.scalars.remove(&i);
        self.scalars.remove(&j);
        if is_scalar(&merged) {
            self.scalars.insert(j);
        }
        self.regions[j] = Some(merged);
        self.make_room(j, i);
        for m in std::mem::take(&mut self.before[i]) {
            self.after[m].remove(&i);
            if m != j {
                self.link(m, j);
            }
        }
        for m in std::mem::take(&mut self.after[i]) {
            self.before[m].remove(&i);
            if m != j {
                self.link(j, m);
            }
        }
        true
    }

    /// Would merging `i` into `j` part it from a reader that it could share a kernel with? So it would if the reader waits
    /// for something else that `j` comes before. The optimizer's arithmetic, which waits for the overflow check in the end,
    /// is not begun in the kernels of the gradients: there, readers' readers count too.
    fn parts_from_reader(&mut self, j: usize, i: usize) -> bool {
        let is_update = |at: usize| self.region(at).roots.iter().any(|&r| self.graph.node(r).stage == Stage::Update);
        let most = if is_update(i) && !is_update(j) { CHAIN } else { 1 };
        let (mut chain, mut next) = (vec![i], 0);
        while next < chain.len() && next < most {
            let region = self.region(chain[next]);
            for &r in region.roots.iter().filter_map(|b| self.readers.get(b)).flatten() {
                if r != j && !chain.contains(&r) && worth_merging(self.graph, region, self.region(r)) {
                    chain.push(r);
                }
            }
            next += 1;
        }
        let readers = chain[1..].to_vec();
        chain.push(j);
        readers.into_iter().any(|r| self.reaches(j, r, &chain) && !self.reaches(i, r, &chain))
    }

    /// A topological order, smallest index first; none if there is a cycle (a product's value passed to a later kernel).
    fn order(&self) -> Option<Vec<usize>> {
        let live = |i: &usize| self.regions[*i].is_some();
        let mut waiting: Vec<usize> = self.before.iter().map(BTreeSet::len).collect();
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..self.regions.len()).filter(|i| live(i) && waiting[*i] == 0).map(Reverse).collect();
        let mut out = Vec::new();
        while let Some(Reverse(i)) = ready.pop() {
            out.push(i);
            for &next in &self.after[i] {
                waiting[next] -= 1;
                if waiting[next] == 0 {
                    ready.push(Reverse(next));
                }
            }
        }
        (out.len() == (0..self.regions.len()).filter(live).count()).then_some(out)
    }
}

fn is_scalar(r: &Region) -> bool {
    !r.is_loop && r.layout.outer.is_empty() && r.layout.inner.is_empty()
}

fn wide_reduction(r: &Region) -> bool {
    r.wide && !r.layout.inner.is_empty()
}

/// Does it reduce over axes outside the one along which it stores neighbours? Such a kernel strides through memory, where
/// a sum over columns alone, or what is stored alone, would not.
fn is_strided(r: &Region) -> bool {
    let outer = r.layout.outer.len();
    let strides = |root| {
        let axes = r.layout.all_axes(Site::Value(root));
        axes.iter().any(|&a| a >= outer) && axes.last().is_some_and(|&a| a < outer)
    };
    !r.layout.inner.is_empty() && r.roots.iter().any(|&root| strides(root))
}

/// Elements of a region's domain.
fn domain(r: &Region) -> usize {
    r.layout.outer.iter().chain(&r.layout.inner).product()
}

/// Two regions are worth one kernel if one reads what the other writes, if both read a large buffer, or if both are
/// scalar work. Reductions to a scalar keep to themselves: many blocks share one, and what follows must wait for all.
fn worth_merging(graph: &Graph, a: &Region, b: &Region) -> bool {
    if a.is_loop || b.is_loop {
        return false;
    }
    let total = |r: &Region| r.layout.outer.is_empty() && !r.layout.inner.is_empty();
    if total(a) != total(b) {
        return false;
    }
    // A product whose result is stored as it is goes straight to memory; with more to do, libraries go through scratch.
    let stored = |r: &Region| {
        r.layout.product.is_some_and(|p| r.roots.iter().any(|&root| graph.inputs(root).first() == Some(&p)))
    };
    if stored(a) || stored(b) {
        return false;
    }
    // What a kernel stores covers its whole domain, or all of it but what it reduces over.
    let (large, small) = if domain(a) < domain(b) { (b, a) } else { (a, b) };
    let outer = large.layout.outer.iter().product::<usize>();
    if domain(large) != domain(small) && (large.layout.inner.is_empty() || outer != domain(small)) {
        return false;
    }
    if b.reads.iter().any(|r| a.roots.contains(r)) || a.reads.iter().any(|r| b.roots.contains(r)) {
        return true;
    }
    if is_scalar(a) && is_scalar(b) {
        return true;
    }
    if a.layout.product.is_some() || b.layout.product.is_some() {
        return false;
    }
    let elements = domain(a);
    elements == domain(b) && a.reads.intersection(&b.reads).any(|&s| graph.ty(s).elements() == elements)
}
