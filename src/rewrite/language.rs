//! The e-graph's terms and what is known of each e-class.
//!
//! Three sorts. A *value* is computed in registers, a *buffer* is a tensor in memory in one format, an *edge* is what
//! an operation reads. Attributes, formats and names are leaves, so a pattern variable can bind them.

use super::EGraph;
use crate::format::{Format, Formats};
use crate::ir::ops::{Arity, Reads, Signature, names};
use crate::ir::{Attrs, Num, Op, Shape, Type};
use egg::{Analysis, DidMerge, Id, Language, Symbol};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

/// What stands at the head of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Head {
    /// An operation, by name.
    Op(Symbol),
    /// A name, a format or an attribute: a leaf that is no tensor.
    Word(Symbol),
    /// A scalar constant: a value.
    Num(Num),
}

/// A term of the e-graph, its children e-classes: egg's e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    /// What is applied, or the leaf itself.
    pub head: Head,
    /// E-classes: attributes and names first, then tensors.
    pub children: Vec<Id>,
}

impl Language for Term {
    type Discriminant = Head;
    fn discriminant(&self) -> Head {
        self.head
    }
    fn matches(&self, other: &Term) -> bool {
        self.head == other.head && self.children.len() == other.children.len()
    }
    fn children(&self) -> &[Id] {
        &self.children
    }
    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.head {
            Head::Op(s) | Head::Word(s) => write!(f, "{s}"),
            Head::Num(n) => write!(f, "{n}"),
        }
    }
}

impl Term {
    /// A term of an operation, or of a form, by its name.
    pub fn op(name: &str, children: Vec<Id>) -> Term {
        Term { head: Head::Op(name.into()), children }
    }
    /// A leaf that is no tensor.
    pub fn word(text: &str) -> Term {
        Term { head: Head::Word(text.into()), children: Vec::new() }
    }
    /// The operation's name, or "" for a leaf.
    pub fn name(&self) -> &'static str {
        if let Head::Op(s) = self.head { s.as_str() } else { "" }
    }
}

/// What an e-class holds. Classes of two sorts never merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sort {
    /// A name, a format or an attribute: no tensor.
    Word,
    /// Computed in registers.
    Value,
    /// A tensor in memory, in one format.
    Buffer,
    /// What an operation reads: a value as it was computed, or a buffer.
    Edge,
    /// The root, which ties all outputs together.
    Step,
}

/// Heads that are no operations of a graph: how values travel, what the step is given, and copies of that.
pub mod forms {
    /// A value read where it was computed, in registers.
    pub const PASS: &str = "pass";
    /// A buffer read from memory.
    pub const GET: &str = "get";
    /// `(param NAME)`: the buffer of a trained tensor.
    pub const PARAM: &str = "param";
    /// `(state NAME)`: the buffer of a tensor the step carries along.
    pub const STATE: &str = "state";
    /// `(input NAME)`: the buffer of a tensor of the batch, labels too.
    pub const INPUT: &str = "input";
    /// `(carried FORMAT PARAM)`: the copy that the optimizer's kernel writes.
    pub const CARRIED: &str = "carried";
    /// `(staged FORMAT INPUT)`: the copy that the loader writes.
    pub const STAGED: &str = "staged";
    /// The root, with one buffer for each output.
    pub const STEP: &str = "step";
    /// `(as KEY ?constant)`: an attribute made of a constant, on a rule's right side.
    pub const AS: &str = "as";
}

/// What stands behind a head: words first, then tensors of one sort.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub sort: Sort,
    pub words: usize,
    pub operands: Sort,
    /// How many tensors.
    pub arity: Arity,
}

impl Parts {
    /// What a term of this head is made of; none if there is no such head.
    pub fn of(name: &str) -> Option<Parts> {
        let form = |sort, words, operands, arity| Some(Parts { sort, words, operands, arity });
        match name {
            forms::PASS => form(Sort::Edge, 0, Sort::Value, Arity::exactly(1)),
            forms::GET => form(Sort::Edge, 0, Sort::Buffer, Arity::exactly(1)),
            forms::PARAM | forms::STATE | forms::INPUT => form(Sort::Buffer, 1, Sort::Word, Arity::exactly(0)),
            forms::CARRIED | forms::STAGED => form(Sort::Buffer, 2, Sort::Word, Arity::exactly(0)),
            forms::STEP => form(Sort::Step, 0, Sort::Buffer, Arity::ANY),
            names::SCAN => form(Sort::Buffer, 1, Sort::Buffer, Arity::ANY),
            _ => Signature::find(name).map(|row| Parts {
                sort: if row.in_memory { Sort::Buffer } else { Sort::Value },
                words: row.attributes.len(),
                operands: match row.reads {
                    Reads::Either => Sort::Edge,
                    Reads::Memory => Sort::Buffer,
                    Reads::Registers => Sort::Value,
                },
                arity: row.arity,
            }),
        }
    }
}

/// Does an operation of this name contract whole tensors in memory?
pub fn is_product(name: &str) -> bool {
    Signature::find(name).is_some_and(Signature::is_product)
}

/// Is a term of this head a tensor that the step is given, or a copy of one?
pub fn is_source(name: &str) -> bool {
    matches!(name, forms::PARAM | forms::STATE | forms::INPUT | forms::CARRIED | forms::STAGED)
}

/// What the policy allows of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Allow {
    /// Formats it may be stored in, narrower than its own.
    pub stores: Formats,
    /// Formats in which products may read it.
    pub casts: Formats,
    /// If it is a product: formats it may be multiplied in.
    pub multiplies: Formats,
}

impl Allow {
    /// Every format: no policy restricts the value.
    pub const ALL: Allow = Allow { stores: Formats::ALL, casts: Formats::ALL, multiplies: Formats::ALL };

    /// No format but its own.
    pub const NONE: Allow = Allow { stores: Formats::NONE, casts: Formats::NONE, multiplies: Formats::NONE };

    /// Everything in these formats.
    pub fn within(formats: Formats) -> Allow {
        Allow { stores: formats, casts: formats, multiplies: formats }
    }

    fn and(self, other: Allow) -> Allow {
        Allow {
            stores: self.stores.and(other.stores),
            casts: self.casts.and(other.casts),
            multiplies: self.multiplies.and(other.multiplies),
        }
    }
}

impl Default for Allow {
    fn default() -> Allow {
        Allow::ALL
    }
}

/// What every member of an e-class agrees on.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// What its terms yield.
    pub sort: Sort,
    /// Shape and format; none for words and the root.
    pub ty: Option<Type>,
    /// What the policy allows of its value: of merged classes, what it allows of each.
    pub allow: Allow,
    /// The number, if a member is a constant.
    pub constant: Option<Num>,
    /// What a word says; of a source's buffer its name.
    pub word: Option<Symbol>,
}

/// What conditions may ask besides the e-classes: the plan's targets and policy, and the sources' types.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Types of parameters, states and inputs, by name.
    pub sources: BTreeMap<String, Type>,
    /// Parameters the step updates: the optimizer can write copies of these.
    pub updated: BTreeSet<String>,
    /// Inputs the loader can stage in a narrower format.
    pub staged: BTreeSet<String>,
    /// Narrow formats that the plan may use: the target's matrix units multiply them.
    pub formats: Formats,
    /// What is allowed of values about to be added; everything unless somebody says otherwise.
    pub allow: Allow,
    /// The loops, in the order they were encoded: a term of one names it by number.
    pub scans: Vec<Op>,
    /// The rule that made a term, by the term as it was made.
    pub made_by: HashMap<Term, Symbol>,
}

impl Analysis<Term> for Facts {
    type Data = Fact;

    fn make(egraph: &mut EGraph, term: &Term, _: Id) -> Fact {
        let fact = |sort, ty| Fact { sort, ty, allow: egraph.analysis.allow, constant: None, word: None };
        let child = |i: usize| &egraph[term.children[i]].data;
        match term.head {
            Head::Word(w) => Fact { word: Some(w), ..fact(Sort::Word, None) },
            Head::Num(n) => {
                Fact { constant: Some(n), ..fact(Sort::Value, Some(Type::new(Shape::scalar(), Format::F32))) }
            }
            Head::Op(name) => {
                let name = name.as_str();
                let sort = Parts::of(name).map_or(Sort::Value, |p| p.sort);
                match name {
                    forms::STEP => fact(sort, None),
                    forms::PASS | forms::GET => child(0).clone().read_as(sort),
                    forms::PARAM | forms::STATE | forms::INPUT => {
                        let word = child(0).word.map_or("", |w| w.as_str());
                        let ty = egraph.analysis.sources.get(word).cloned();
                        Fact {
                            word: child(0).word,
                            ..fact(sort, Some(ty.expect("sources are declared before they are used")))
                        }
                    }
                    forms::CARRIED | forms::STAGED => {
                        let format = child(0).word.and_then(|w| w.as_str().parse().ok()).expect("a format leads");
                        let source = child(1).word.and_then(|w| egraph.analysis.sources.get(w.as_str()));
                        let shape = source.expect("sources are declared before they are used").shape.clone();
                        fact(sort, Some(Type::new(shape, format)))
                    }
                    _ => {
                        let ty =
                            infer(egraph, term).unwrap_or_else(|e| panic!("a rule built an ill-typed {name}: {e}"));
                        let allow = if matches!(name, names::PUT | names::CAST | names::ALIAS) {
                            child(1).allow
                        } else {
                            egraph.analysis.allow
                        };
                        Fact { allow, ..fact(sort, Some(ty)) }
                    }
                }
            }
        }
    }

    /// Equal classes must agree in sort, shape and format; rules are asked before they unite any.
    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        assert!(a.sort == b.sort && a.ty == b.ty, "a rule equates {a:?} and {b:?}");
        let merged = Fact {
            allow: a.allow.and(b.allow),
            constant: a.constant.or(b.constant),
            word: a.word.or(b.word),
            ..a.clone()
        };
        let changed = (merged != *a, merged != b);
        *a = merged;
        DidMerge(changed.0, changed.1)
    }
}

impl Fact {
    /// What a reader sees: a narrow buffer is f32 once read.
    fn read_as(self, sort: Sort) -> Fact {
        let ty = self.ty.map(|t| Type { format: t.format.once_read(), ..t });
        Fact { sort, ty, word: None, ..self }
    }
}

/// The IR operation of a value, `put` or `cast` term, and its tensor operands.
///
/// # Errors
/// Why not, in words: no operation has the name, attributes are missing or no such values.
pub fn decode_op(egraph: &EGraph, term: &Term) -> Result<(Op, Vec<Id>), String> {
    if let Head::Num(n) = term.head {
        return Ok((Op::Const(n), Vec::new()));
    }
    let name = term.name();
    let word = |id: Id| egraph[id].data.word.filter(|_| egraph[id].data.sort == Sort::Word).map(|w| w.as_str());
    if name == names::SCAN {
        let number: Option<usize> =
            word(term.children[0]).and_then(|w| w.strip_prefix("scan.")).and_then(|n| n.parse().ok());
        let op = number.and_then(|n| egraph.analysis.scans.get(n)).ok_or("no such loop")?;
        return Ok((op.clone(), term.children[1..].to_vec()));
    }
    let row = Signature::find(name).ok_or_else(|| format!("there is no operation `{name}`"))?;
    let (words, operands) =
        term.children.split_at_checked(row.attributes.len()).ok_or_else(|| format!("`{name}` lacks attributes"))?;
    let mut attrs = Attrs::default();
    for (attribute, &child) in row.attributes.iter().zip(words) {
        let leaf = word(child).ok_or_else(|| format!("a tensor stands where {}=… must", attribute.key))?;
        attrs.0.push((attribute.key.to_owned(), attribute.of_leaf(leaf)?));
    }
    row.build(&attrs).map(|op| (op, operands.to_vec()))
}

/// Can a term be made of these operands?
///
/// # Errors
/// Why not, in words.
pub(super) fn makes_sense(egraph: &EGraph, term: &Term) -> Result<(), String> {
    let word = |i: usize| {
        let child = term.children.get(i).and_then(|&c| egraph[c].data.word);
        child.map(|w| w.as_str()).ok_or_else(|| format!("`{}` lacks a word", term.name()))
    };
    let among = |known: bool, name: &str, what: &str| {
        if known { Ok(()) } else { Err(format!("`{name}` is no {what}")) }
    };
    let facts = &egraph.analysis;
    match term.name() {
        "" | forms::STEP | forms::PASS | forms::GET => Ok(()),
        forms::PARAM | forms::STATE | forms::INPUT => {
            let name = word(0)?;
            among(facts.sources.contains_key(name), name, "tensor of the step")
        }
        head @ (forms::CARRIED | forms::STAGED) => {
            word(0)?.parse::<Format>().map_err(|e| e.to_string())?;
            let name = word(1)?;
            match head == forms::CARRIED {
                true => among(facts.updated.contains(name), name, "parameter that the step updates"),
                false => among(facts.staged.contains(name), name, "input that the loader can round"),
            }
        }
        _ => infer(egraph, term).map(|_| ()),
    }
}

fn infer(egraph: &EGraph, term: &Term) -> Result<Type, String> {
    let (op, operands) = decode_op(egraph, term)?;
    let types: Vec<&Type> =
        operands.iter().map(|&c| egraph[c].data.ty.as_ref().ok_or("not a tensor")).collect::<Result<_, _>>()?;
    op.infer(&types)
}
