//! Axis unification: which axes of a region's values are the same loop.
//!
//! Every axis of every value gets a variable. Operations identify variables; a reshape in registers splits one into two
//! (`[6, 4] → [24]` makes the 24 an outer 6 and an inner 4), so that values of different ranks can share a loop nest.

use super::region::Site;
use crate::ir::{Graph, NodeId, Op};
use std::collections::BTreeMap;

/// Union-find over axis variables, with splits.
pub(super) struct Axes<'a> {
    graph: &'a Graph,
    parent: Vec<usize>,
    extent: Vec<usize>,
    /// The outer and inner part of a variable.
    split: Vec<Option<(usize, usize)>>,
    of: BTreeMap<Site, Vec<Option<usize>>>,
}

impl<'a> Axes<'a> {
    pub fn new(graph: &'a Graph) -> Axes<'a> {
        Axes { graph, parent: Vec::new(), extent: Vec::new(), split: Vec::new(), of: BTreeMap::new() }
    }

    fn fresh(&mut self, extent: usize) -> usize {
        self.parent.push(self.parent.len());
        self.extent.push(extent);
        self.split.push(None);
        self.parent.len() - 1
    }

    /// Gives a value or read variables for its axes; an axis of extent 1 needs none.
    pub fn add(&mut self, site: Site, dims: &[usize]) {
        let vars = dims.iter().map(|&d| (d != 1).then(|| self.fresh(d))).collect();
        self.of.insert(site, vars);
    }

    pub fn sites(&self) -> impl Iterator<Item = Site> + '_ {
        self.of.keys().copied()
    }

    pub fn extent(&self, var: usize) -> usize {
        self.extent[var]
    }

    fn find(&self, mut v: usize) -> usize {
        while self.parent[v] != v {
            v = self.parent[v];
        }
        v
    }

    /// The unsplit variables that an axis of a site is made of, outermost first.
    pub fn leaves_of(&self, site: Site, axis: usize) -> Vec<usize> {
        let mut out = Vec::new();
        if let Some(v) = self.of[&site][axis] {
            self.leaves(v, &mut out);
        }
        out
    }

    /// All of a site's variables, outermost first.
    pub fn all_leaves(&self, site: Site) -> Vec<usize> {
        let mut out = Vec::new();
        self.of[&site].iter().flatten().for_each(|&v| self.leaves(v, &mut out));
        out
    }

    fn leaves(&self, v: usize, out: &mut Vec<usize>) {
        let v = self.find(v);
        match self.split[v] {
            None => out.push(v),
            Some((a, b)) => {
                self.leaves(a, out);
                self.leaves(b, out);
            }
        }
    }

    pub fn rank(&self, site: Site) -> usize {
        self.of[&site].len()
    }

    /// Identifies two axes; an axis of extent 1 is anything.
    fn unify(&mut self, a: Option<usize>, b: Option<usize>) -> Result<(), String> {
        let (Some(a), Some(b)) = (a, b) else { return Ok(()) };
        let (a, b) = (self.find(a), self.find(b));
        if a == b {
            return Ok(());
        }
        if self.extent[a] != self.extent[b] {
            return Err(format!("axes of extents {} and {} meet", self.extent[a], self.extent[b]));
        }
        match (self.split[a], self.split[b]) {
            (None, None) => self.parent[a.max(b)] = a.min(b),
            (Some(_), None) => self.parent[b] = a,
            (None, Some(_)) => self.parent[a] = b,
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
            let (ea, eb) = (self.extent[a], self.extent[b]);
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
        if self.split[v].is_some() {
            return Err("an axis is split in two ways".into());
        }
        let (a, b) = (self.fresh(self.extent[v] / inner), self.fresh(inner));
        self.split[v] = Some((a, b));
        self.unify(Some(b), Some(same))?;
        Ok(a)
    }

    /// Identifies the axes of two sites one by one.
    pub fn unify_sites(&mut self, a: Site, b: Site) -> Result<(), String> {
        let (x, y) = (self.of[&a].clone(), self.of[&b].clone());
        x.into_iter().zip(y).try_for_each(|(p, q)| self.unify(p, q))
    }

    /// Identifies the axes of an operand with those of its user, as the user's operation says.
    pub fn connect(&mut self, user: NodeId, operand: usize, at: Site) -> Result<(), String> {
        let (y, x) = (self.of[&Site::Value(user)].clone(), self.of[&at].clone());
        let pairs: Vec<(Option<usize>, Option<usize>)> = match self.graph.op(user) {
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
                let (mut a, mut b) = (Vec::new(), Vec::new());
                x.iter().flatten().for_each(|&v| self.leaves(v, &mut a));
                y.iter().flatten().for_each(|&v| self.leaves(v, &mut b));
                return self.unify_groups(a, b);
            }
            op @ (Op::Slice { .. } | Op::Pad { .. } | Op::Window { .. } | Op::Unwindow { .. }) => {
                return Err(format!("`{}` is a {} of a value in registers", self.graph.name_of(user), op.name()));
            }
            // Axes are connected when loads are emitted: the index's to the result's, the rest by position.
            Op::Gather { axis } if operand == 1 => x.iter().copied().zip(y[*axis..].iter().copied()).collect(),
            Op::Gather { axis } => {
                let rank = y.len() + 1 - x.len();
                let lead = x[..*axis].iter().copied().zip(y[..*axis].iter().copied());
                lead.chain(x[axis + 1..].iter().copied().zip(y[axis + rank..].iter().copied())).collect()
            }
            Op::Concat { axis } => {
                x.iter().copied().zip(y).enumerate().filter(|(i, _)| i != axis).map(|(_, p)| p).collect()
            }
            op if op.is_product() => Vec::new(),
            _ => x.iter().rev().copied().zip(y.iter().rev().copied()).collect(),
        };
        pairs.into_iter().try_for_each(|(a, b)| self.unify(a, b))
    }
}
