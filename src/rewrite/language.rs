//! The e-graph's terms and what is known of each e-class.
//!
//! Three sorts. A *value* is computed in registers, a *buffer* is a tensor in memory in one format, an *edge* is what
//! an operation reads. Attributes, formats and names are leaves, so a pattern variable can bind them.

use super::EGraph;
use crate::format::{Format, Formats};
use crate::ir::text::parse_attr;
use crate::ir::{Attr, Attrs, Num, Op, Shape, Type};
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    pub head: Head,
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
    pub fn op(name: &str, children: Vec<Id>) -> Term {
        Term { head: Head::Op(name.into()), children }
    }
    pub fn word(text: &str) -> Term {
        Term { head: Head::Word(text.into()), children: Vec::new() }
    }
    /// The operation's name, or "" for a leaf.
    pub fn name(&self) -> &'static str {
        if let Head::Op(s) = self.head { s.as_str() } else { "" }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sort {
    Word,
    Value,
    Buffer,
    Edge,
    /// The root, which ties all outputs together.
    Step,
}

impl Sort {
    /// The sort of a term with this head.
    pub fn of(name: &str) -> Sort {
        match name {
            "" => Sort::Word,
            "pass" | "get" => Sort::Edge,
            "put" | "cast" | "alias" | "scan" | "param" | "state" | "input" | "carried" | "staged" => Sort::Buffer,
            "step" => Sort::Step,
            _ => Sort::Value,
        }
    }

    /// The sort that the tensor operands of a term with this head have.
    pub fn of_operands(name: &str) -> Sort {
        match name {
            "pass" | "put" => Sort::Value,
            "get" | "cast" | "alias" | "scan" | "step" => Sort::Buffer,
            name if is_product(name) => Sort::Buffer,
            "param" | "state" | "input" | "carried" | "staged" => Sort::Word,
            _ => Sort::Edge,
        }
    }
}

/// Does an operation of this name contract whole tensors in memory?
pub fn is_product(name: &str) -> bool {
    matches!(name, "matmul" | "conv" | "conv_input" | "conv_weight" | "scatter" | "scatter_add")
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
    pub const ALL: Allow = Allow { stores: Formats::ALL, casts: Formats::ALL, multiplies: Formats::ALL };

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
    pub sort: Sort,
    /// Shape and format; none for words and the root.
    pub ty: Option<Type>,
    pub allow: Allow,
    pub constant: Option<Num>,
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
    /// What a rule would have made that has no type, or another than what it replaces: nothing more is rewritten.
    pub fault: Option<String>,
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
                let sort = Sort::of(name);
                match name {
                    "step" => fact(sort, None),
                    "pass" | "get" => child(0).clone().read_as(sort),
                    "param" | "state" | "input" => {
                        let word = child(0).word.map_or("", |w| w.as_str());
                        let ty = egraph.analysis.sources.get(word).cloned();
                        Fact {
                            word: child(0).word,
                            ..fact(sort, Some(ty.expect("sources are declared before they are used")))
                        }
                    }
                    "carried" | "staged" => {
                        let format = child(0).word.and_then(|w| w.as_str().parse().ok()).expect("a format leads");
                        let source = child(1).word.and_then(|w| egraph.analysis.sources.get(w.as_str()));
                        let shape = source.expect("sources are declared before they are used").shape.clone();
                        fact(sort, Some(Type::new(shape, format)))
                    }
                    _ => {
                        let ty =
                            infer(egraph, term).unwrap_or_else(|e| panic!("a rule built an ill-typed {name}: {e}"));
                        let allow = if matches!(name, "put" | "cast" | "alias") {
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

/// Attribute leaves as written in terms: formats and bare words stand alone, the rest as `key=value`.
pub(super) fn attr_leaf(key: &str, attr: &Attr) -> String {
    match attr {
        Attr::Format(f) => f.to_string(),
        Attr::Word(w) if matches!(key, "t" | "reduction") => w.clone(),
        other => format!("{key}={other}"),
    }
}

/// The IR operation of a value, `put` or `cast` term, and its tensor operands.
pub fn decode_op(egraph: &EGraph, term: &Term) -> Result<(Op, Vec<Id>), String> {
    if let Head::Num(n) = term.head {
        return Ok((Op::Const(n), Vec::new()));
    }
    let name = term.name();
    if name == "scan" {
        let word = egraph[term.children[0]].data.word.map_or("", |w| w.as_str());
        let number: Option<usize> = word.strip_prefix("scan.").and_then(|n| n.parse().ok());
        let op = number.and_then(|n| egraph.analysis.scans.get(n)).ok_or("no such loop")?;
        return Ok((op.clone(), term.children[1..].to_vec()));
    }
    let mut attrs = Attrs::default();
    let mut operands = Vec::new();
    for &child in &term.children {
        match egraph[child].data.word.filter(|_| egraph[child].data.sort == Sort::Word) {
            None => operands.push(child),
            Some(word) => {
                let word = word.as_str();
                let (key, value) = match word.split_once('=') {
                    Some(pair) => pair,
                    None if word.parse::<Format>().is_ok() => ("format", word),
                    None if name == "matmul" => ("t", word),
                    None => ("reduction", word),
                };
                attrs.0.push((key.to_owned(), parse_attr(value).map_err(|e| e.message)?));
            }
        }
    }
    Op::build(name, &attrs).map(|op| (op, operands))
}

/// Can a term be made of these operands?
///
/// # Errors
/// Why not, in words.
pub(super) fn makes_sense(egraph: &EGraph, term: &Term) -> Result<(), String> {
    let word = |i: usize| {
        let child = term.children.get(i).and_then(|&c| egraph[c].data.word);
        child.map(|w| w.as_str()).ok_or_else(|| format!("`{term}` lacks a word"))
    };
    let source = |name: &str| {
        let known = egraph.analysis.sources.contains_key(name);
        if known { Ok(()) } else { Err(format!("nothing is called `{name}`")) }
    };
    match term.name() {
        "" | "step" | "pass" | "get" => Ok(()),
        "param" | "state" | "input" => source(word(0)?),
        "carried" | "staged" => {
            word(0)?.parse::<Format>().map_err(|e| e.to_string())?;
            source(word(1)?)
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
