//! Cutting a planned graph into kernels: one region per buffer, then merged greedily while legal, producers first.

use super::axes::Site;
use super::layout::is_shared;
use super::region::{Analyser, Region, loop_region, underlying};
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
        while let Some(j) = merger.merge_earlier(at) {
            at = j;
        }
    }
    let order = merger.schedule();
    debug_assert_eq!(order.len(), merger.regions.iter().flatten().count(), "merging closes no circle");
    let regions = order.into_iter().filter_map(|i| merger.regions[i].take());
    let regions = regions.map(|r| if r.layout.is_stale { merger.analyser.region(&r.roots) } else { Ok(r) });
    Ok(Regions { regions: regions.collect::<Result<_, String>>()?, shadowed })
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

/// Reductions that kernels are merged for: more results than these, of several columns each, do not stay in registers.
const SUMS: usize = 16;
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
    /// By buffer.
    writer: Vec<Option<usize>>,
    readers: Vec<BTreeSet<usize>>,
    /// Of each value.
    elements: Vec<usize>,
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
            writer: vec![None; graph.len()],
            readers: vec![BTreeSet::new(); graph.len()],
            elements: graph.ids().map(|id| graph.ty(id).elements()).collect(),
            scalars: BTreeSet::new(),
            place: vec![0; n],
            seen: vec![0; n],
            searches: 0,
        };
        for (i, r) in m.regions.iter().enumerate() {
            let Some(r) = r else { continue };
            r.roots.iter().for_each(|b| m.writer[b.index()] = Some(i));
            r.reads.iter().for_each(|b| {
                m.readers[b.index()].insert(i);
            });
            if is_scalar(r) {
                m.scalars.insert(i);
            }
        }
        for i in 0..n {
            let first = m.region(i).reads.union(&m.region(i).waits);
            let from: Vec<usize> = first.filter_map(|b| m.writer[b.index()]).filter(|&w| w != i).collect();
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
            let Some(w) = self.writer[root.index()] else { continue };
            let readers: Vec<usize> = self.readers[source.index()].iter().copied().filter(|&r| r != w).collect();
            if readers.iter().any(|&r| self.reaches(w, r, &[])) {
                shadowed.insert(self.graph.name_of(*source).to_owned());
            } else {
                readers.into_iter().for_each(|r| self.link(r, w));
            }
        }
        shadowed
    }

    /// Is there a way from `from` to `to` through something else than `skipped`? A direct step does not count if `from` is
    /// among these. Looked for from both ends, because often one of them has few ways to go.
    fn reaches(&mut self, from: usize, to: usize, skipped: &[usize]) -> bool {
        if !skipped.contains(&from) && self.after[from].contains(&to) {
            return true;
        }
        self.searches += 2;
        let (ahead, behind) = (self.searches - 1, self.searches);
        // What comes before `from` does not wait for it, and what comes after `to` is not waited for.
        let between = self.place[from]..=self.place[to];
        let (mut down, mut up) = (vec![from], vec![to]);
        while let (Some(a), Some(b)) = (down.pop(), up.pop()) {
            for (at, links, stack, own, other) in
                [(a, &self.after, &mut down, ahead, behind), (b, &self.before, &mut up, behind, ahead)]
            {
                for &i in &links[at] {
                    if i == from || i == to || skipped.contains(&i) || !between.contains(&self.place[i]) {
                        continue;
                    }
                    if self.seen[i] == other {
                        return true;
                    }
                    if std::mem::replace(&mut self.seen[i], own) != own {
                        stack.push(i);
                    }
                }
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

    /// Merges a region into an earlier one, the nearest that it can share a kernel with, and returns that.
    fn merge_earlier(&mut self, i: usize) -> Option<usize> {
        let near = self.partners(i);
        let is_scalar = self.regions[i].as_ref().is_some_and(is_scalar);
        let mut before = i;
        loop {
            let scalar = if is_scalar { self.scalars.range(..before).next_back() } else { None };
            before = near.range(..before).next_back().max(scalar).copied()?;
            if self.merge(before, i) {
                return Some(before);
            }
        }
    }

    /// Earlier regions, other than scalars, that might share a kernel with region `i`.
    fn partners(&self, i: usize) -> BTreeSet<usize> {
        let Some(r) = &self.regions[i] else { return BTreeSet::new() };
        let mut out: BTreeSet<usize> = BTreeSet::new();
        out.extend(r.reads.iter().filter_map(|b| self.writer[b.index()]).filter(|&w| w < i));
        out.extend(r.roots.iter().flat_map(|b| self.readers[b.index()].range(..i)));
        let elements = domain(r);
        let large = r.reads.iter().filter(|&&b| self.elements[b.index()] == elements);
        out.extend(large.flat_map(|b| self.readers[b.index()].range(..i)));
        out
    }

    /// Merges region `i` into the earlier `j` if that is legal and worth it.
    fn merge(&mut self, j: usize, i: usize) -> bool {
        if !worth_merging(self.graph, &self.elements, self.region(j), self.region(i))
            || self.reaches(j, i, &[j])
            || self.reaches(i, j, &[i])
            || self.parts_from_reader(j, i)
        {
            return false;
        }
        let Some(merged) = self.both(j, i) else { return false };
        let old = self.regions[i].take().expect("a live region");
        for b in &old.reads {
            let readers = &mut self.readers[b.index()];
            readers.remove(&i);
            if merged.reads.contains(b) {
                readers.insert(j);
            }
        }
        for b in &old.roots {
            self.writer[b.index()] = Some(j);
            // Read from registers from now on.
            if !merged.reads.contains(b) {
                self.readers[b.index()].remove(&j);
            }
        }
        self.scalars.remove(&i);
        if is_scalar(&merged) {
            self.scalars.insert(j);
        } else {
            self.scalars.remove(&j);
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

    /// What two regions become together, if that is one kernel. The first may be taken.
    fn both(&mut self, j: usize, i: usize) -> Option<Region> {
        let (mut a, b) = (self.regions[j].take()?, self.region(i));
        if self.analyser.add_aligned(&mut a, b) {
            return Some(a);
        }
        let mut roots = [&a.roots[..], &b.roots].concat();
        roots.sort_unstable();
        let merged = self.analyser.region(&roots).ok().filter(|merged| {
            // Wide registers are for what needs them; a reduction that does not is not made to wait for them.
            let widened = wide_reduction(merged) && !wide_reduction(&a) && !wide_reduction(b);
            let strided = is_strided(merged) && !is_strided(&a) && !is_strided(b);
            let crowded = merged.reductions > SUMS && merged.reductions > a.reductions.max(b.reductions);
            !widened && !strided && !crowded
        });
        self.regions[j] = Some(a);
        merged
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
            for &r in region.roots.iter().flat_map(|b| &self.readers[b.index()]) {
                if r != j && !chain.contains(&r) && worth_merging(self.graph, &self.elements, region, self.region(r)) {
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

impl Merger<'_> {
    /// Regions in running order: as they come, but what gives back more memory than it takes runs as soon as it can. So a
    /// weight's gradient is computed when its operands are there, and these are not kept to the end of the step. Scalars are
    /// waited for by others, and take nothing.
    fn schedule(&self) -> Vec<usize> {
        let bytes = |b: &NodeId| self.graph.ty(*b).bytes();
        let temporary = |b: &NodeId| !self.graph.op(*b).is_source();
        let mut left: Vec<usize> = self.readers.iter().map(BTreeSet::len).collect();
        // What the step hands out is never given back.
        self.graph.outputs().iter().for_each(|o| left[underlying(self.graph, o.node).index()] += 1);
        let frees = |i: usize, left: &[usize]| {
            let r = self.region(i);
            let freed: usize = r.reads.iter().filter(|b| temporary(b) && left[b.index()] == 1).map(bytes).sum();
            is_scalar(r) || freed > r.roots.iter().map(bytes).sum()
        };
        let mut waiting: Vec<usize> = self.before.iter().map(BTreeSet::len).collect();
        let live = (0..self.regions.len()).filter(|&i| self.regions[i].is_some());
        let mut ready: BTreeSet<usize> = live.filter(|&i| waiting[i] == 0).collect();
        let mut urgent: BTreeSet<usize> = ready.iter().copied().filter(|&i| frees(i, &left)).collect();
        let mut out = Vec::new();
        while let Some(i) = urgent.pop_first().or_else(|| ready.first().copied()) {
            ready.remove(&i);
            out.push(i);
            for &next in &self.after[i] {
                waiting[next] -= 1;
                if waiting[next] == 0 {
                    ready.insert(next);
                    if frees(next, &left) {
                        urgent.insert(next);
                    }
                }
            }
            for b in &self.region(i).reads {
                left[b.index()] -= 1;
                if left[b.index()] == 1 {
                    let last = self.readers[b.index()].iter().filter(|r| ready.contains(r) && frees(**r, &left));
                    urgent.extend(last);
                }
            }
        }
        out
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
fn worth_merging(graph: &Graph, sizes: &[usize], a: &Region, b: &Region) -> bool {
    if a.is_loop || b.is_loop {
        return false;
    }
    let total = |r: &Region| r.layout.outer.is_empty() && !r.layout.inner.is_empty();
    if total(a) != total(b) {
        return false;
    }
    // What reads a long row's sum would go over the row again, in the few blocks that have one.
    let again = |w: &Region, r: &Region| {
        let is_sum = |b: &&NodeId| sizes[b.index()] < domain(w);
        is_shared(w.layout.outer.iter().product(), w.layout.inner.iter().product())
            && domain(w) == domain(r)
            && w.roots.iter().filter(is_sum).any(|b| r.reads.contains(b))
    };
    if again(a, b) || again(b, a) {
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
    elements == domain(b) && a.reads.intersection(&b.reads).any(|&s| sizes[s.index()] == elements)
}
