//! Classes that are the same in different layers: what is chosen in one is chosen in all of them.

use super::live::Flip;
use super::members::{Choice, Members};
use crate::format::Format;
use crate::plan::layers::{Matching, Numbers};
use crate::rewrite::{Sort, Term, forms, is_source};
use egg::Id;
use std::collections::HashSet;

/// By class id; everything stands for itself where a step has no layers.
#[derive(Default)]
pub(in crate::plan) struct Alike {
    /// The same class in the next layer, and in the one before.
    next: Vec<Option<Id>>,
    previous: Vec<Option<Id>>,
    /// What is chosen for another class is chosen here.
    follows: Vec<bool>,
    /// For each member a number: equal for terms that differ in no more than what they read and in names.
    heads: Vec<Vec<u32>>,
}

impl Alike {
    /// What follows from pairs of classes that are the same in one layer and the next.
    pub fn new(m: &Members, pairs: &[(Id, Id)]) -> Alike {
        if pairs.is_empty() {
            return Alike::default();
        }
        let (mut known, mut labels, mut kinds) = (Numbers::default(), Numbers::default(), Numbers::default());
        let (mut all_heads, mut links, mut kind_of) = (Vec::new(), Vec::new(), Vec::new());
        for class in (0..m.ids()).map(Id::from) {
            let heads: Vec<u32> = m.of(class).iter().map(|t| known.of(head(m, t))).collect();
            let mut link = Vec::new();
            for (term, head) in m.of(class).iter().zip(&heads) {
                // Of members alike there is no telling which is which.
                if heads.iter().filter(|h| *h == head).count() == 1 {
                    let read = term.children.iter().enumerate().filter(|&(_, &c)| m.sort(c) != Sort::Word);
                    link.extend(read.map(|(at, &c)| (labels.of((*head, at)), usize::from(c))));
                }
            }
            let mut kind = heads.clone();
            kind.sort_unstable();
            // Ids that are not canonical have no members.
            let ty = if kind.is_empty() { None } else { m.ty(class).cloned() };
            kind_of.push(kinds.of((kind, ty)));
            links.push(link);
            all_heads.push(heads);
        }
        let mut matching = Matching::new(links, kind_of);
        matching.follow(&pairs.iter().map(|&(a, b)| (usize::from(a), usize::from(b))).collect::<Vec<_>>());
        let mut follows = vec![false; m.ids()];
        for chain in matching.chains() {
            // A layer in the middle has layers on both sides.
            let middle = chain[chain.len() / 2];
            chain.into_iter().for_each(|c| follows[c] = c != middle);
        }
        let ids = |v: Vec<Option<usize>>| v.into_iter().map(|c| c.map(Id::from)).collect();
        Alike { next: ids(matching.next), previous: ids(matching.previous), follows, heads: all_heads }
    }

    /// Are there no layers?
    pub fn is_empty(&self) -> bool {
        self.follows.is_empty()
    }

    /// Is what is chosen here what is chosen for the same class of another layer?
    pub fn follows(&self, class: Id) -> bool {
        self.follows.get(usize::from(class)).copied().unwrap_or(false)
    }

    /// A flip in all layers that have its classes.
    pub fn everywhere(&self, m: &Members, flip: &Flip) -> Flip {
        let mut out = flip.clone();
        for beside in [&self.next, &self.previous] {
            let mut here = flip.clone();
            while let Some(there) = here.iter().map(|&f| self.shifted(m, beside, f)).collect::<Option<Flip>>() {
                out.extend(&there);
                here = there;
            }
        }
        out
    }

    /// The same choice in all layers, with values stored that would be handed from layer to layer.
    pub fn in_all_layers(&self, m: &Members, mut choice: Choice) -> Choice {
        if self.is_empty() {
            return choice;
        }
        // Of scalars that follow from each other, the last may be read by many: it is stored, the others need not be.
        for class in m.open().filter(|&c| !self.follows(c) && !m.is_scalar(c)) {
            choice.take(&self.everywhere(m, &vec![(class, choice.of(class))]));
        }
        for edge in m.open().filter(|&c| m.sort(c) == Sort::Edge && !self.follows(c)) {
            if let Some(stored) = m.narrowest(edge).filter(|_| self.crosses(m, &choice, edge)) {
                choice.take(&self.everywhere(m, &vec![(edge, stored)]));
            }
        }
        choice
    }

    /// Is an edge's value handed from layer to layer in registers? Then each layer's kernels read what all layers before
    /// have stored, which costs the more the more layers there are, and little in a step with few. Scalars are exempt: one
    /// kernel may compute all of them.
    pub fn crosses(&self, m: &Members, choice: &Choice, edge: Id) -> bool {
        let others = [in_layer(&self.next, edge), in_layer(&self.previous, edge)];
        if others == [None; 2] || m.chosen(choice, edge).name() != forms::PASS || m.is_scalar(edge) {
            return false;
        }
        let (mut seen, mut stack) = (HashSet::new(), vec![edge]);
        while let Some(class) = stack.pop() {
            if class != edge && others.contains(&Some(class)) {
                return true;
            }
            if seen.insert(class) && m.sort(class) != Sort::Buffer {
                stack.extend(m.operands(choice, class));
            }
        }
        false
    }

    /// The same member of the same class a layer further.
    fn shifted(&self, m: &Members, beside: &[Option<Id>], (class, member): (Id, usize)) -> Option<(Id, usize)> {
        let to = |c: Id| in_layer(beside, c);
        let there = to(class)?;
        let (here, others) = (&self.heads[usize::from(class)], &self.heads[usize::from(there)]);
        let mut same = (0..others.len()).filter(|&i| others[i] == here[member]);
        let (first, second) = (same.next()?, same.next());
        if second.is_none() {
            return Some((there, first));
        }
        // Told apart by what they read.
        let reads = |i: usize| {
            let mut pairs = m.of(class)[member].children.iter().zip(&m.of(there)[i].children);
            pairs.all(|(&a, &b)| m.sort(a) == Sort::Word || a == b || to(a) == Some(b))
        };
        [first].into_iter().chain(second).chain(same).find(|&i| reads(i)).map(|i| (there, i))
    }
}

/// The same class in the layer beside.
fn in_layer(beside: &[Option<Id>], class: Id) -> Option<Id> {
    beside.get(usize::from(class)).copied().flatten()
}

/// A term without what it reads and without names.
fn head(m: &Members, term: &Term) -> (&'static str, Vec<&'static str>) {
    let named = is_source(term.name());
    let words = term.children.iter().filter(|&&c| m.sort(c) == Sort::Word).map(|&c| m.word(c));
    (term.name(), words.filter(|w| !named || w.parse::<Format>().is_ok()).collect())
}
