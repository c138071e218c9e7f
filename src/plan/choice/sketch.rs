//! The graph a choice stands for, or a part of one, first as a sketch: terms numbered in a fixed order.
//!
//! Sketches of repeated layers are equal, so what was found out about one holds for all of them.

use super::members::{Choice, Members};
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Graph, Init, NodeId, Op, Role, Stage, Type};
use crate::rewrite::{Sort, Term, forms};
use egg::Id;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// One node of a sketch; operands are positions of earlier nodes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Node {
    /// A buffer made outside the sketch; a late one after all that the sketch's forward pass keeps.
    Boundary { ty: Type, is_late: bool },
    /// A parameter, state or input, or a copy of one.
    Source { head: &'static str, ty: Type },
    /// The term without its tensor operands, which stand beside it.
    Term(Term, Vec<u32>),
    /// The write of a carried copy.
    Carry(Format, u32),
}

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Use {
    /// Read outside.
    Kept,
    /// Read outside, and made by the forward pass: before late boundaries.
    Forward,
    /// Replaces the source at this position.
    Updates(u32),
}

/// Equal for parts of a step that differ in nothing but names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::plan) struct Key {
    nodes: Vec<Node>,
    uses: Vec<(u32, Use)>,
}

pub(in crate::plan) struct Sketch<'a> {
    members: &'a Members<'a>,
    choice: &'a Choice,
    key: Key,
    /// The class behind each node.
    classes: Vec<Id>,
    at: FxHashMap<Id, u32>,
    /// Carried copies that are read, and their nodes.
    carried: BTreeMap<(String, Format), u32>,
    /// Names and roles for the graph's outputs, one for each use.
    outputs: Vec<(String, Role)>,
}

/// A visit of a class: on the way down, or when its operands are done.
enum Visit {
    Enter(Id),
    Leave(Id),
}

impl<'a> Sketch<'a> {
    /// The whole step.
    pub fn whole(members: &'a Members<'a>, choice: &'a Choice) -> Result<Sketch<'a>> {
        let mut s = Sketch::empty(members, choice);
        let all = 0..members.step.outputs().len();
        s.outputs_of_step(all, &|_| false)?;
        s.carry(&|_| true, &|_| false)?;
        Ok(s)
    }

    /// The part that computes some of the step's outputs and some buffers; `outside` says where it ends. Copies carried
    /// to the next step are written where `writes` says so of the updated value.
    pub fn part(
        members: &'a Members<'a>,
        choice: &'a Choice,
        outputs: &[usize],
        kept: &[Id],
        outside: &dyn Fn(Id) -> bool,
        writes: &dyn Fn(Id) -> bool,
    ) -> Result<Sketch<'a>> {
        let mut s = Sketch::empty(members, choice);
        let is_forward = |c: &Id| members.pass_of(choice, *c) == Some(Stage::Forward);
        let (forward, rest): (Vec<Id>, Vec<Id>) = kept.iter().partition(|c| is_forward(c));
        let uses = forward.into_iter().map(|c| (c, Use::Forward)).chain(rest.into_iter().map(|c| (c, Use::Kept)));
        for (i, (class, used)) in uses.enumerate() {
            let node = s.class(class, outside)?;
            s.key.uses.push((node, used));
            s.outputs.push((format!("kept.{i}"), Role::Output));
        }
        s.outputs_of_step(outputs.iter().copied(), outside)?;
        s.carry(writes, outside)?;
        Ok(s)
    }

    fn empty(members: &'a Members<'a>, choice: &'a Choice) -> Sketch<'a> {
        let key = Key { nodes: Vec::new(), uses: Vec::new() };
        let (classes, at) = (Vec::new(), FxHashMap::default());
        Sketch { members, choice, key, classes, at, carried: BTreeMap::new(), outputs: Vec::new() }
    }

    pub fn key(&self) -> &Key {
        &self.key
    }

    fn outputs_of_step(&mut self, which: impl Iterator<Item = usize>, outside: &dyn Fn(Id) -> bool) -> Result<()> {
        let roots = &self.members.chosen(self.choice, self.members.root).children;
        for i in which {
            let o = &self.members.step.outputs()[i];
            let node = self.class(roots[i], outside)?;
            let used = match o.role {
                // What is updated exists, even if only copies of it are read.
                Role::Update => Use::Updates(self.source(&o.name)),
                Role::Output | Role::Metric => Use::Kept,
            };
            self.key.uses.push((node, used));
            self.outputs.push((o.name.clone(), o.role));
        }
        Ok(())
    }

    /// A carried copy obliges the step to write it; writing one may need others.
    fn carry(&mut self, writes: &dyn Fn(Id) -> bool, outside: &dyn Fn(Id) -> bool) -> Result<()> {
        let mut seen = BTreeSet::new();
        while let Some((copy, &source)) = self.carried.iter().find(|(c, _)| !seen.contains(*c)) {
            let (name, format) = copy.clone();
            let value = self.members.update_of(&name);
            if writes(value) {
                let node = self.class(value, outside)?;
                let put = self.push(Node::Carry(format, node), value);
                self.key.uses.push((put, Use::Updates(source)));
                self.outputs.push((copy_name(&name, format), Role::Update));
            }
            seen.insert((name, format));
        }
        Ok(())
    }

    fn push(&mut self, node: Node, class: Id) -> u32 {
        self.key.nodes.push(node);
        self.classes.push(class);
        (self.key.nodes.len() - 1) as u32
    }

    /// The node of a source that the step updates, made if need be.
    fn source(&mut self, name: &str) -> u32 {
        let id = self.members.step.find(name).expect("an update has a source");
        let class = self.members.find(self.members.encoded.classes[id.index()]);
        if let Some(&at) = self.at.get(&class) {
            return at;
        }
        let node = self.source_node(self.members.chosen(self.choice, class));
        let at = self.push(node, class);
        self.at.insert(class, at);
        at
    }

    fn source_name(&self, class: Id) -> String {
        let term = self.members.chosen(self.choice, class);
        match self.members.copy_of(term) {
            Some((name, format)) => copy_name(name, format),
            None => self.members.word(term.children[0]).to_owned(),
        }
    }

    fn source_node(&self, term: &Term) -> Node {
        let m = self.members;
        let ty = match m.copy_of(term) {
            Some((name, format)) => Type { format, ..m.source_type(name).clone() },
            None => m.source_type(m.word(term.children[0])).clone(),
        };
        Node::Source { head: term.name(), ty }
    }

    /// Adds a class with everything below it, in the order of a depth-first walk.
    fn class(&mut self, root: Id, outside: &dyn Fn(Id) -> bool) -> Result<u32> {
        let mut open = BTreeSet::new();
        let mut stack = vec![Visit::Enter(root)];
        while let Some(visit) = stack.pop() {
            match visit {
                Visit::Enter(class) if self.at.contains_key(&class) => {}
                Visit::Enter(class) if outside(class) => {
                    let ty = self.members.ty(class).expect("words are not visited").clone();
                    let is_late = self.is_late(class);
                    let at = self.push(Node::Boundary { ty, is_late }, class);
                    self.at.insert(class, at);
                }
                Visit::Enter(class) => {
                    if !open.insert(class) {
                        return Err(Error::Graph("a cyclic choice".into()));
                    }
                    stack.push(Visit::Leave(class));
                    stack.extend(self.members.operands(self.choice, class).rev().map(Visit::Enter));
                }
                Visit::Leave(class) => {
                    open.remove(&class);
                    let at = self.leave(class);
                    self.at.insert(class, at);
                }
            }
        }
        Ok(self.at[&root])
    }

    /// The way from the forward pass to the backward one lies outside a part that touches both: without being told, its
    /// kernels would be merged across.
    fn is_late(&self, class: Id) -> bool {
        let m = self.members;
        let is_computed = !m.is_constant(class) && !m.is_source(self.choice, class);
        is_computed && m.pass_of(self.choice, class).is_some_and(|stage| stage > Stage::Forward)
    }

    fn leave(&mut self, class: Id) -> u32 {
        let members = self.members;
        let term = members.chosen(self.choice, class);
        match term.name() {
            forms::PASS | forms::GET => self.at[&term.children[0]],
            _ if members.is_source(self.choice, class) => {
                let node = self.source_node(term);
                let at = self.push(node, class);
                if let Some((name, format)) = members.copy_of(term).filter(|_| term.name() == forms::CARRIED) {
                    self.carried.insert((name.to_owned(), format), at);
                }
                at
            }
            _ => {
                let operands = members.operands(self.choice, class).map(|o| self.at[&o]).collect();
                let words = term.children.iter().copied().filter(|&c| members.sort(c) == Sort::Word).collect();
                self.push(Node::Term(Term { head: term.head, children: words }, operands), class)
            }
        }
    }

    /// The sketch as a graph, with the names the step has.
    pub fn graph(&self) -> Result<Graph> {
        self.built().map(|b| b.0)
    }

    /// Where the graph has each value of the step.
    pub fn places(&self, step: &Graph) -> Result<Vec<Option<NodeId>>> {
        let made = self.built()?.1;
        let class = |id: NodeId| self.members.find(self.members.encoded.classes[id.index()]);
        Ok(step.ids().map(|id| self.at.get(&class(id)).map(|&n| made[n as usize])).collect())
    }

    /// The graph and its node for each node of the sketch.
    fn built(&self) -> Result<(Graph, Vec<NodeId>)> {
        let m = self.members;
        let mut graph = Graph::with_capacity(&m.step.name, self.key.nodes.len());
        let mut made: Vec<NodeId> = Vec::with_capacity(self.key.nodes.len());
        for (i, (node, &class)) in self.key.nodes.iter().zip(&self.classes).enumerate() {
            let id = match node {
                Node::Boundary { ty, is_late } => {
                    let op = Op::Input { label: false, ty: ty.clone(), copy_of: None };
                    let mut at = graph.add_named(format!("boundary.{i}"), op, &[])?;
                    let first = self.key.uses.iter().filter(|u| u.1 == Use::Forward).map(|u| u.0 as usize);
                    for token in first.filter(|&token| *is_late && token < i) {
                        at = graph.add(Op::After, &[at, made[token]])?;
                    }
                    at
                }
                Node::Source { head, ty } => {
                    let name = self.source_name(class);
                    let copied = m.copy_of(m.chosen(self.choice, class)).map(|(name, _)| name.to_owned());
                    let op = match (*head, copied) {
                        (forms::STAGED, copy_of) => Op::Input { label: false, ty: ty.clone(), copy_of },
                        (forms::CARRIED, Some(name)) => Op::State { init: Init::Copy(name), ty: ty.clone() },
                        _ => {
                            let id = m.step.find(&name).ok_or_else(|| Error::Graph(format!("no source `{name}`")))?;
                            m.step.op(id).clone()
                        }
                    };
                    graph.add_named(name, op, &[])?
                }
                Node::Term(_, operands) => {
                    let inputs: Vec<NodeId> = operands.iter().map(|&o| made[o as usize]).collect();
                    let (op, _) = m.decode(m.chosen(self.choice, class)).map_err(Error::Graph)?;
                    let id = graph.add(op.clone(), &inputs)?;
                    match &op {
                        Op::Put(f) => {
                            let name = copy_name(graph.name_of(inputs[0]), *f);
                            graph.rename(id, &name);
                        }
                        Op::Const(_) => {}
                        _ => {
                            if let Some(name) = m.name(class) {
                                graph.rename_as(id, name, m.named(class));
                            }
                        }
                    }
                    id
                }
                Node::Carry(format, value) => graph.add(Op::Put(*format), &[made[*value as usize]])?,
            };
            made.push(id);
        }
        for ((node, used), (name, role)) in self.key.uses.iter().zip(&self.outputs) {
            let id = made[*node as usize];
            if let (Use::Updates(_), Node::Carry(..)) = (used, &self.key.nodes[*node as usize]) {
                graph.rename(id, &format!("{name}.next"));
            }
            graph.add_output(name, *role, id);
        }
        Ok((graph, made))
    }
}

/// The name of a source's copy in another format.
pub fn copy_name(source: &str, format: Format) -> String {
    format!("{source}.{format}")
}
