//! Repeated layers are planned once: a step of many layers is planned with few, and the plan given the rest.
//!
//! What follows from parameters being alike tells which values are the same in one layer and the next ([`matching`]). They
//! form chains ([`chains`]), and taking layers out of the chains leaves a smaller step of the same kind ([`resize`]). That
//! one is planned; in its plan chains are looked for again, and put in where layers had been taken out. Where any of this
//! fails, as where layers are not alike or not planned alike, the step is planned as it is, and says why ([`NotAlike`]).
//!
//! Evidence differs from layer to layer, so plans by evidence are made for the whole step.

mod chains;
mod matching;
mod resize;

use super::{Request, Verdict};
use crate::error::Error;
use crate::ir::{Graph, NodeId, Op, Role};
use chains::Chains;
pub(super) use matching::{Matching, Numbers};
use resize::{Change, Key, Made, Resize};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use std::fmt;

/// Layers left in a step to be planned: as many as are tried, one after another, until they are planned alike but for
/// those at the ends.
pub(super) const LAYERS: [isize; 2] = [4, 6];
/// Taking fewer layers out is not worth the trouble.
const WORTH: isize = 2;
/// Layers that a plan must have in common: one at each end that what is around may read, and those between.
const COMMON: isize = 3;

/// Why a step was planned with all of its layers.
#[derive(Clone, Debug, PartialEq)]
pub enum NotAlike {
    /// It has too few that are alike.
    Few,
    /// Evidence is kept by value, and differs from layer to layer.
    Evidence,
    /// A value that is in no layer reads one whose layer cannot be told.
    Reader(String),
    /// An output of the step is computed in some layers only.
    Output(String),
    /// The plan of a step with few layers did not treat them alike.
    Plan,
}

/// What ends an attempt: a reason to plan all layers, or a fault.
pub(super) enum Unlike {
    Because(NotAlike),
    Failed(Error),
}

impl From<NotAlike> for Unlike {
    fn from(why: NotAlike) -> Unlike {
        Unlike::Because(why)
    }
}

impl From<Error> for Unlike {
    fn from(fault: Error) -> Unlike {
        Unlike::Failed(fault)
    }
}

impl NotAlike {
    fn reader(graph: &Graph, id: NodeId) -> NotAlike {
        NotAlike::Reader(graph.name_of(id).to_owned())
    }

    fn output(name: &str) -> NotAlike {
        NotAlike::Output(name.to_owned())
    }
}

impl fmt::Display for NotAlike {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            NotAlike::Few => write!(f, "fewer than {} are alike", LAYERS[0] + WORTH),
            NotAlike::Evidence => write!(f, "evidence differs from layer to layer"),
            NotAlike::Reader(name) => write!(f, "`{name}` is in none, and reads one that is not the last or first"),
            NotAlike::Output(name) => write!(f, "only some compute `{name}`"),
            NotAlike::Plan => write!(f, "those at the ends are planned otherwise than those between"),
        }
    }
}

/// A step of many layers and the one with few that is planned in its place.
pub(super) struct Layers<'a> {
    full: &'a Graph,
    chains: Chains,
    /// What was taken out, by family.
    changes: BTreeMap<usize, Change>,
    /// The step with few layers.
    pub step: Graph,
    /// For each of its nodes, the step's.
    pub full_of: Vec<NodeId>,
    /// Where its nodes are in the chains.
    keys: Vec<Key>,
    made: FxHashMap<Key, NodeId>,
}

/// A plan with all layers.
pub(super) struct Grown {
    pub graph: Graph,
    /// Where each value of the step is in the graph.
    pub places: Vec<Option<NodeId>>,
    /// The value of the step with few layers that each of the step's was planned as.
    pub planned_as: Vec<NodeId>,
}

impl<'a> Layers<'a> {
    /// A step with so few layers, if this one has many that are alike and nothing is known that would tell them apart.
    pub fn of(full: &'a Graph, few: isize, verdicts: &[Verdict], request: &Request) -> Result<Layers<'a>, Unlike> {
        let mut allowed = Numbers::default();
        let labels: Vec<u32> = verdicts.iter().map(|v| allowed.of(v.allow)).collect();
        let links = chains::links(full);
        let mut matching = Matching::of_graph(full, &links, &|id| labels[id.index()]);
        matching.match_sources(full.sources(), (few + WORTH) as usize);
        let chains = Chains::new(full, links, &matching, few as usize, None);
        let changes: BTreeMap<usize, Change> = chains
            .common()
            .into_iter()
            .filter(|(_, common)| common.end - common.start >= few + WORTH)
            .map(|(f, common)| {
                let by = few - (common.end - common.start);
                (f, Change { after: common.start + few / 2, by, inner: 0..0 })
            })
            .collect();
        if changes.is_empty() {
            return Err(NotAlike::Few.into());
        }
        if request.calibration.is_some() {
            return Err(NotAlike::Evidence.into());
        }
        let resize = Resize { graph: full, chains: &chains, changes: &changes };
        let mut outputs = Vec::new();
        for o in full.outputs() {
            let key = match o.role {
                Role::Update => {
                    let source = full.find(&o.name).expect("what is updated exists");
                    let Some(key) = resize.key(source) else { continue };
                    resize.replaced_by(key)
                }
                _ => resize.key(o.node),
            };
            outputs.push((o.name.clone(), o.role, key.ok_or_else(|| NotAlike::output(&o.name))?));
        }
        let name = |old: NodeId| Made { op: full.op(old).clone(), name: Some(full.name_of(old).to_owned()) };
        let (step, made) = resize.build(&outputs, &|old, _| Some(name(old)))?;
        let mut keys = vec![Key::Own(NodeId::new(0)); step.len()];
        made.iter().for_each(|(&key, id)| keys[id.index()] = key);
        let full_of = keys.iter().map(|&k| resize.old(k).0).collect();
        Ok(Layers { full, step, full_of, keys, made, chains, changes })
    }

    /// A plan of the step with few layers, with all of them, where it plans its layers alike.
    pub fn grow(&self, planned: &Graph, places: &[Option<NodeId>]) -> Result<Grown, Unlike> {
        let chains = self.chains_in(planned);
        let changes = self.changes_in(&chains).ok_or(NotAlike::Plan)?;
        let resize = Resize { graph: planned, chains: &chains, changes: &changes };
        let outputs = self.outputs(&resize)?;
        let own_name = |id: NodeId| places[id.index()].filter(|&p| self.step.name_of(id) == planned.name_of(p));
        let named: FxHashSet<NodeId> = self.step.ids().filter_map(own_name).collect();
        let make = |old: NodeId, later: isize| {
            let later = chains.at[old.index()].map(|_| later);
            let mut op = planned.op(old).clone();
            if let Some(of) = planned.op(old).copy_of() {
                op = op.with_copy_of(&self.full_name(self.step.find(of)?, of, later, &changes)?);
            }
            let known = !planned.is_auto_named(old) || named.contains(&old);
            let renamed = || self.full_name(self.base(planned, old)?, planned.name_of(old), later, &changes);
            Some(Made { op, name: if known { renamed() } else { None } })
        };
        let (graph, made) = resize.build(&outputs, &make)?;
        let stand_in = |id| self.stand_in(id, &changes).ok_or_else(|| NotAlike::reader(self.full, id));
        let stand_ins = self.full.ids().map(stand_in).collect::<Result<Vec<_>, _>>()?;
        let place = |&(few, later): &(NodeId, Option<isize>)| {
            let place = places[few.index()]?;
            let changed = |at: &(usize, usize)| changes.contains_key(&chains.all[at.0].family);
            let key = match chains.at[place.index()].filter(changed).zip(later) {
                Some(((chain, at), later)) => Key::In(chain, at as isize + later),
                None => resize.key(place)?,
            };
            made.get(&key).copied()
        };
        let places = stand_ins.iter().map(place).collect();
        let places = self.consistent(&graph, places);
        Ok(Grown { graph, places, planned_as: stand_ins.into_iter().map(|s| s.0).collect() })
    }

    /// Places without those that compute as their value does, but of something else: of a value that the ends of a run share
    /// with its middle there is no telling which layer's is meant.
    fn consistent(&self, planned: &Graph, places: Vec<Option<NodeId>>) -> Vec<Option<NodeId>> {
        let held = |mut id: NodeId| {
            while matches!(planned.op(id), Op::Put(_) | Op::Cast(_) | Op::Alias { .. } | Op::After) {
                id = planned.inputs(id)[0];
            }
            id
        };
        let mut wrong = vec![false; self.full.len()];
        for id in self.full.ids() {
            let Some(place) = places[id.index()] else { continue };
            let (x, y) = (self.full.inputs(id), planned.inputs(place));
            let is_same = self.full.op(id).name() == planned.op(place).name() && x.len() == y.len();
            let is_other =
                |(x, &y): (&NodeId, &NodeId)| wrong[x.index()] || places[x.index()].is_some_and(|x| held(x) != held(y));
            wrong[id.index()] = is_same && x.iter().zip(y).any(is_other);
        }
        places.into_iter().zip(wrong).map(|(place, wrong)| place.filter(|_| !wrong)).collect()
    }

    /// The layers of a plan, counted as the step counts them.
    fn chains_in(&self, planned: &Graph) -> Chains {
        let links = chains::links(planned);
        let mut matching = Matching::of_graph(planned, &links, &|_| 0);
        matching.follow(&self.sources(planned));
        let layer = |id: NodeId| match self.keys[self.base(planned, id)?.index()] {
            Key::In(chain, at) => Some((self.chains.all[chain].family, self.chains.all[chain].first + at)),
            Key::Own(_) => None,
        };
        Chains::new(planned, links, &matching, COMMON as usize, Some(&layer))
    }

    /// Where layers can be put back into a plan of such chains.
    fn changes_in(&self, chains: &Chains) -> Option<BTreeMap<usize, Change>> {
        let common = chains.common();
        let change = |(&family, change): (&usize, &Change)| {
            let common = common.get(&family).filter(|c| c.end - c.start >= COMMON)?;
            let (after, inner) = (common.start + (common.end - common.start) / 2, common.start + 1..common.end - 1);
            Some((family, Change { after, by: -change.by, inner }))
        };
        self.changes.iter().map(change).collect()
    }

    /// The value of the step with few layers that one of the step's was planned as, and how many layers earlier that is,
    /// where layers are put back.
    fn stand_in(&self, id: NodeId, changes: &BTreeMap<usize, Change>) -> Option<(NodeId, Option<isize>)> {
        let Some((chain, at)) = self.chains.at[id.index()] else {
            return Some((*self.made.get(&Key::Own(id))?, None));
        };
        let (c, at) = (&self.chains.all[chain], at as isize);
        let later = changes.get(&c.family).map(|change| {
            // What is put in is like what comes before it.
            let before = change.after + 1 - c.first;
            if at < before { 0 } else { at - (at - change.by).max(before - 1).max(0) }
        });
        Some((*self.made.get(&Key::In(chain, at - later.unwrap_or(0)))?, later))
    }

    /// Pairs of the small step's values that are the same in one layer and the next.
    pub fn pairs(&self) -> Vec<(NodeId, NodeId)> {
        let next = |key: &Key| match *key {
            Key::In(chain, at) => self.made.get(&Key::In(chain, at + 1)).copied(),
            Key::Own(_) => None,
        };
        let changed =
            |key: &Key| matches!(*key, Key::In(chain, _) if self.changes.contains_key(&self.chains.all[chain].family));
        let pair = |id: NodeId| {
            let key = &self.keys[id.index()];
            Some((id, next(key).filter(|_| changed(key))?))
        };
        self.step.ids().filter_map(pair).collect()
    }

    /// For each run of layers that are alike: how many there are, and how many were planned.
    pub fn counts(&self) -> Vec<(usize, usize)> {
        let of = |(&family, change): (&usize, &Change)| {
            let sources =
                self.full.sources().filter_map(|id| self.chains.at[id.index()]).map(|at| &self.chains.all[at.0]);
            let all = sources.filter(|c| c.family == family).map(|c| c.nodes.len()).max().unwrap_or(0);
            (all, all.saturating_add_signed(change.by))
        };
        self.changes.iter().map(of).collect()
    }

    /// The value of the small step that a plan's is named after: its own, the source it is a copy of or replaces, or the one
    /// that a buffer holds.
    fn base(&self, planned: &Graph, mut id: NodeId) -> Option<NodeId> {
        loop {
            if let Some(own) = self.step.find(planned.name_of(id)) {
                return Some(own);
            }
            if let Some(of) = planned.op(id).copy_of() {
                return self.step.find(of);
            }
            if let Some(o) = planned.outputs().iter().find(|o| o.role == Role::Update && o.node == id) {
                return self.source(planned, &o.name);
            }
            match planned.op(id) {
                Op::Put(_) => id = planned.inputs(id)[0],
                _ => return None,
            }
        }
    }

    /// The source of the small step that a plan's is, or is a copy of.
    fn source(&self, planned: &Graph, name: &str) -> Option<NodeId> {
        let copied = planned.find(name).and_then(|id| planned.op(id).copy_of());
        self.step.find(copied.unwrap_or(name))
    }

    /// Pairs of the plan's sources that are the same in one layer and the next.
    fn sources(&self, planned: &Graph) -> Vec<(usize, usize)> {
        let mut of: BTreeMap<(usize, isize, String), NodeId> = BTreeMap::new();
        for id in planned.sources() {
            let Some(base) = self.base(planned, id) else { continue };
            if let Key::In(chain, at) = self.keys[base.index()] {
                let what = planned.name_of(id).strip_prefix(self.step.name_of(base)).unwrap_or_default();
                of.insert((chain, at, what.to_owned()), id);
            }
        }
        let next = |(chain, at, what): &(usize, isize, String)| of.get(&(*chain, at + 1, what.clone()));
        of.iter().filter_map(|(key, id)| Some((id.index(), next(key)?.index()))).collect()
    }

    /// The outputs of the grown plan: the step's in their order, then what it carries along.
    fn outputs(&self, resize: &Resize) -> Result<Vec<(String, Role, Key)>, NotAlike> {
        let (planned, mut out) = (resize.graph, Vec::new());
        for o in planned.outputs() {
            let unknown = || NotAlike::output(&o.name);
            if o.role != Role::Update {
                out.push((o.name.clone(), o.role, resize.key(o.node).ok_or_else(unknown)?));
                continue;
            }
            let source = planned.find(&o.name).ok_or_else(unknown)?;
            let first = resize.chains.at[source.index()].is_none_or(|at| at.1 == 0);
            for key in resize.all(source).into_iter().filter(|_| first) {
                let (old, later) = resize.old(key);
                let later = resize.chains.at[old.index()].map(|_| later);
                let base = self.base(planned, old).ok_or_else(unknown)?;
                let name = self.full_name(base, planned.name_of(old), later, resize.changes).ok_or_else(unknown)?;
                out.push((name, Role::Update, resize.replaced_by(key).ok_or_else(unknown)?));
            }
        }
        let rank: FxHashMap<(&str, Role), usize> =
            self.full.outputs().iter().enumerate().map(|(i, o)| ((o.name.as_str(), o.role), i)).collect();
        out.sort_by_cached_key(|(name, role, _)| {
            (rank.get(&(name.as_str(), *role)).copied().unwrap_or(rank.len()), name.clone())
        });
        // Every output of the step, once.
        let made: FxHashSet<(&str, Role)> = out.iter().map(|(name, role, _)| (name.as_str(), *role)).collect();
        match self.full.outputs().iter().find(|o| !made.contains(&(o.name.as_str(), o.role))) {
            Some(lacking) => Err(NotAlike::output(&lacking.name)),
            None if made.len() < out.len() => Err(NotAlike::Plan),
            None => Ok(out),
        }
    }

    /// The name that a plan's value, named after `base`, has so many layers later; what is in no chain of the plan is before
    /// what is put in, or after it.
    fn full_name(
        &self,
        base: NodeId,
        name: &str,
        later: Option<isize>,
        changes: &BTreeMap<usize, Change>,
    ) -> Option<String> {
        let what = name.strip_prefix(self.step.name_of(base))?;
        let Key::In(chain, at) = self.keys[base.index()] else {
            return (later.unwrap_or(0) == 0).then(|| name.to_owned());
        };
        let c = &self.chains.all[chain];
        let change = changes.get(&c.family);
        let later = later.unwrap_or(change.filter(|g| c.first + at > g.after).map_or(0, |g| g.by));
        let full = *c.nodes.get(usize::try_from(at + later).ok()?)?;
        Some(self.full.name_of(full).to_owned() + what)
    }
}
