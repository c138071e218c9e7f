//! Axis unification: which axes of a region's values are the same loop.
//!
//! Every axis of every value gets a variable. Operations identify variables; a reshape in registers splits one into two
//! (`[6, 4] → [24]` makes the 24 an outer 6 and an inner 4), so that values of different ranks can share a loop nest.

use crate::ir::{Graph, NodeId, Op};
use std::ops::Range;

/// A value in a region, or one particular read: two reads of a buffer may run over it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    Value(NodeId),
    Read { user: NodeId, operand: usize },
}

/// Union-find over axis variables, with splits.
#[derive(Clone, Debug, Default)]
pub(super) struct Axes {
    vars: Vec<Var>,
    /// Ascending.
    sites: Vec<Site>,
    /// The variables of all sites' axes, and where each site's end; none for an axis of extent 1.
    of: Vec<Option<usize>>,
    ends: Vec<usize>,
}

#[derive(Clone, Debug)]
struct Var {
    /// Itself, if it was not identified with another.
    parent: usize,
    extent: usize,
    /// Its outer and inner part.
    split: Option<(usize, usize)>,
}

impl Axes {
    fn fresh(&mut self, extent: usize) -> usize {
        let v = self.vars.len();
        self.vars.push(Var { parent: v, extent, split: None });
        v
    }

    /// Room for so many values and reads.
    pub fn with_capacity(sites: usize) -> Axes {
        // Most have two or three axes.
        let of = 3 * sites;
        Axes {
            vars: Vec::with_capacity(of),
            sites: Vec::with_capacity(sites),
            of: Vec::with_capacity(of),
            ends: Vec::with_capacity(sites),
        }
    }

    /// Gives a value or read variables for its axes. Sites are added in ascending order.
    pub fn add(&mut self, site: Site, dims: &[usize]) {
        debug_assert!(self.sites.last().is_none_or(|&last| last < site), "sites ascend");
        for &d in dims {
            let var = (d != 1).then(|| self.fresh(d));
            self.of.push(var);
        }
        self.sites.push(site);
        self.ends.push(self.of.len());
    }

    /// All sites, ascending, and where their axes are among those of all sites.
    pub fn sites(&self) -> impl Iterator<Item = (Site, Range<usize>)> + '_ {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        self.sites.iter().copied().zip(starts.zip(&self.ends).map(|(start, &end)| start..end))
    }

    pub fn has(&self, site: Site) -> bool {
        self.sites.binary_search(&site).is_ok()
    }

    /// How many variables there are.
    pub fn variables(&self) -> usize {
        self.vars.len()
    }

    pub fn extent(&self, var: usize) -> usize {
        self.vars[var].extent
    }

    fn find(&self, mut v: usize) -> usize {
        while self.vars[v].parent != v {
            v = self.vars[v].parent;
        }
        v
    }

    /// Where a site's variables are in `of`.
    fn range(&self, site: Site) -> Range<usize> {
        let at = self.sites.binary_search(&site).expect("a site of the region");
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        start..self.ends[at]
    }

    /// The unsplit variables that an axis of a site is made of, outermost first.
    pub fn leaves_of(&self, site: Site, axis: usize) -> Vec<usize> {
        let mut out = Vec::new();
        self.add_leaves(self.range(site).start + axis, &mut out);
        out
    }

    /// Appends the unsplit variables that an axis is made of, by its place among those of all sites.
    pub fn add_leaves(&self, place: usize, out: &mut Vec<usize>) {
        if let Some(v) = self.of[place] {
            self.leaves(v, out);
        }
    }

    /// All of a site's variables, outermost first.
    pub fn all_leaves(&self, site: Site) -> Vec<usize> {
        let mut out = Vec::new();
        self.of[self.range(site)].iter().flatten().for_each(|&v| self.leaves(v, &mut out));
        out
    }

    fn leaves(&self, v: usize, out: &mut Vec<usize>) {
        let v = self.find(v);
        match self.vars[v].split {
            None => out.push(v),
            Some((a, b)) => {
                self.leaves(a, out);
                self.leaves(b, out);
            }
        }
    }

    pub fn rank(&self, site: Site) -> usize {
        self.range(site).len()
    }

    /// Identifies two axes; an axis of extent 1 is anything.
    fn unify(&mut self, a: Option<usize>, b: Option<usize>) -> Result<(), String> {
        let (Some(a), Some(b)) = (a, b) else { return Ok(()) };
        let (a, b) = (self.find(a), self.find(b));
        if a == b {
            return Ok(());
        }
        if self.vars[a].extent != self.vars[b].extent {
            return Err(format!("axes of extents {} and {} meet", self.vars[a].extent, self.vars[b].extent));
        }
        match (self.vars[a].split, self.vars[b].split) {
            (None, None) => self.vars[a.max(b)].parent = a.min(b),
            (Some(_), None) => self.vars[b].parent = a,
            (None, Some(_)) => self.vars[a].parent = b,
            (Some(_), Some(_)) => {
                let (mut x, mut y) = (Vec::new(), Vec::new());
                self.leaves(a, &mut x);
                self.leaves(b, &mut y);
                self.unify_groups(x, y)?;
            }
        }
        Ok(())
    }

    /// Identifies two row-major sequences of axes that hold equally many elements, splitting where one is finer.
    fn unify_groups(&mut self, mut x: Vec<usize>, mut y: Vec<usize>) -> Result<(), String> {
        while let (Some(a), Some(b)) = (x.pop(), y.pop()) {
            let (a, b) = (self.find(a), self.find(b));
            let (ea, eb) = (self.vars[a].extent, self.vars[b].extent);
            if ea == eb {
                self.unify(Some(a), Some(b))?;
            } else if eb > 0 && ea > eb && ea.is_multiple_of(eb) {
                let outer = self.cut(a, eb, b)?;
                x.push(outer);
            } else if ea > 0 && eb > ea && eb.is_multiple_of(ea) {
                let outer = self.cut(b, ea, a)?;
                y.push(outer);
            } else {
                return Err(format!("axes of extents {ea} and {eb} do not line up"));
            }
        }
        if x.is_empty() && y.is_empty() { Ok(()) } else { Err("a reshape with axes of extent 0".into()) }
    }

    /// Splits `v`, whose inner part of extent `inner` is `same`; returns the outer part.
    fn cut(&mut self, v: usize, inner: usize, same: usize) -> Result<usize, String> {
        if self.vars[v].split.is_some() {
            return Err("an axis is split in two ways".into());
        }
        let (a, b) = (self.fresh(self.vars[v].extent / inner), self.fresh(inner));
        self.vars[v].split = Some((a, b));
        self.unify(Some(b), Some(same))?;
        Ok(a)
    }

    /// Identifies the axes of two sites one by one.
    pub fn unify_sites(&mut self, a: Site, b: Site) -> Result<(), String> {
        let (x, y) = (self.range(a), self.range(b));
        self.unify_all(x.zip(y))
    }

    /// Identifies axes by their positions in `of`.
    fn unify_all(&mut self, mut pairs: impl Iterator<Item = (usize, usize)>) -> Result<(), String> {
        pairs.try_for_each(|(p, q)| self.unify(self.of[p], self.of[q]))
    }

    /// Identifies the axes of an operand with those of its user, as the user's operation says.
    pub fn connect(&mut self, graph: &Graph, user: NodeId, operand: usize, at: Site) -> Result<(), String> {
        // Positions in `of`.
        let (y, x) = (self.range(Site::Value(user)), self.range(at));
        match graph.op(user) {
            Op::Transpose { perm } => self.unify_all(perm.iter().map(|&p| x.start + p).zip(y)),
            Op::Reduce { axes, keep: true, .. } => {
                let kept = (0..x.len()).filter(|i| !axes.contains(i));
                self.unify_all(kept.map(|i| (x.start + i, y.start + i)))
            }
            Op::Reduce { axes, keep: false, .. } => {
                let kept = (0..x.len()).filter(|i| !axes.contains(i));
                self.unify_all(kept.map(|i| x.start + i).zip(y))
            }
            Op::Reshape { .. } => {
                let (a, b) = (self.all_leaves(at), self.all_leaves(Site::Value(user)));
                self.unify_groups(a, b)
            }
            op @ (Op::Slice { .. } | Op::Pad { .. } | Op::Window { .. } | Op::Unwindow { .. }) => {
                Err(format!("`{}` is a {} of a value in registers", graph.name_of(user), op.name()))
            }
            // Axes are connected when loads are emitted: the index's to the result's, the rest by position.
            Op::Gather { axis } if operand == 1 => self.unify_all(x.zip(y.start + axis..y.end)),
            Op::Gather { axis } => {
                let rank = y.len() + 1 - x.len();
                let lead = (x.start..x.start + axis).zip(y.start..);
                self.unify_all(lead.chain((x.start + axis + 1..x.end).zip(y.start + axis + rank..y.end)))
            }
            Op::Concat { axis } => {
                self.unify_all((0..x.len()).filter(|i| i != axis).map(|i| (x.start + i, y.start + i)))
            }
            op if op.is_product() => Ok(()),
            _ => self.unify_all(x.rev().zip(y.rev())),
        }
    }
}
