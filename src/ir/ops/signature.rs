//! The table of operations: what is known of each by its name.
//!
//! Text, rules, the e-graph, the generator of `rules check` and the book read operations by their [`Signature`]; what an
//! operation means (type, value, gradient) is its [`Family`]'s. Families keep their rows: this file only asks them.

use super::attr::{Attr, Attrs};
use super::{Context, FAMILIES, Gradients, Graph, NodeId, Op, Tensor, Type};
use rustc_hash::FxHashMap;
use std::fmt;
use std::sync::LazyLock;

/// How many operands an operation takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arity {
    /// Operands at least.
    pub least: usize,
    /// Operands at most; `usize::MAX` where there is no limit.
    pub most: usize,
}

impl Arity {
    /// Any positive number of operands.
    pub const ANY: Arity = Arity { least: 1, most: usize::MAX };

    /// So many operands.
    pub const fn exactly(n: usize) -> Arity {
        Arity { least: n, most: n }
    }

    pub(crate) fn contains(self, n: usize) -> bool {
        (self.least..=self.most).contains(&n)
    }
}

impl fmt::Display for Arity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.least, self.most) {
            (1, 1) => f.write_str("1 operand"),
            (n, m) if n == m => write!(f, "{n} operands"),
            (_, usize::MAX) => f.write_str("any number of operands"),
            (n, m) => write!(f, "{n} to {m} operands"),
        }
    }
}

/// Where an operation finds its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// In registers or in memory.
    Either,
    /// In memory: it contracts, copies or renames whole tensors.
    Memory,
    /// In registers.
    Registers,
}

/// Where the elements of a result come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// From none or any of the operands', for the most part by arithmetic.
    Computed,
    /// Each element of the operand, once, at another place.
    Moved,
    /// Some of the operand's, or some more than once, read where they lie.
    Picked,
}

/// What an attribute's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, 0 or more; in text an axis may count from behind, as −1 does.
    Int,
    /// Whole numbers, likewise.
    Ints,
    /// Any number.
    Number,
    /// `true` or `false`.
    Flag,
    /// A shape.
    Dims,
    /// A number format.
    Format,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// What an attribute is where a text does not say.
#[derive(Clone, Debug, PartialEq)]
pub enum Default {
    /// It must be said.
    Needed,
    /// This value.
    Is(Attr),
    /// As many of this number as the attribute of this key has entries.
    Each(&'static str, i64),
    /// The operand's last axis.
    LastAxis,
    /// All axes of the operand.
    AllAxes,
    /// The operand's axes with the last two exchanged.
    LastTwoExchanged,
}

/// One attribute of an operation.
#[derive(Clone, Debug)]
pub struct Attribute {
    /// What stands before its `=` in text.
    pub key: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// What it is where a text leaves it out.
    pub default: Default,
    /// Values that random instances of rules are made with, as text.
    pub samples: &'static [&'static str],
}

impl Attribute {
    pub(super) fn new(key: &'static str, kind: Kind) -> Attribute {
        let samples: &[&str] = match kind {
            Kind::Int => &["0", "1", "2"],
            Kind::Ints => &["[0]", "[1]"],
            Kind::Number => &["0.01"],
            Kind::Flag => &["false", "true"],
            Kind::Dims => &["[3]", "[6]", "[2, 3]", "[3, 2]", "[1, 3]"],
            Kind::Format => &["f16", "bf16", "f32"],
            Kind::Choice(words) => words,
        };
        Attribute { key, kind, default: Default::Needed, samples }
    }

    pub(super) fn or(self, default: Attr) -> Attribute {
        Attribute { default: Default::Is(default), ..self }
    }

    pub(super) fn default(self, default: Default) -> Attribute {
        Attribute { default, ..self }
    }

    pub(super) fn samples(self, samples: &'static [&'static str]) -> Attribute {
        Attribute { samples, ..self }
    }

    /// Do terms write the value alone, rather than as `key=value`?
    fn is_bare(&self) -> bool {
        matches!(self.kind, Kind::Format | Kind::Choice(_))
    }

    /// A value as a leaf of a term.
    pub fn leaf(&self, value: &str) -> String {
        if self.is_bare() { value.to_owned() } else { format!("{}={value}", self.key) }
    }

    /// The value that a leaf of a term gives.
    ///
    /// # Errors
    /// That the leaf is another attribute's, or no value.
    pub fn of_leaf(&self, leaf: &str) -> Result<Attr, String> {
        let value = match leaf.strip_prefix(self.key).and_then(|rest| rest.strip_prefix('=')) {
            Some(value) => value,
            None if self.is_bare() => leaf,
            None => return Err(format!("`{leaf}` stands where {}=… must", self.key)),
        };
        crate::ir::text::parse_attr(value).map_err(|e| e.message)
    }

    /// A leaf as the e-graph spells it: `axes=[0,1]` is `axes=[0, 1]`.
    ///
    /// # Errors
    /// Those of [`Attribute::of_leaf`], and that the value is of another kind.
    pub fn spelled(&self, leaf: &str) -> Result<String, String> {
        let attr = self.of_leaf(leaf)?;
        let given = Attrs(vec![(self.key.to_owned(), attr.clone())]);
        let attr = match self.kind {
            Kind::Int => given.int(self.key).map(|_| attr),
            Kind::Ints => given.ints(self.key).map(|_| attr),
            Kind::Number => given.float(self.key).map(Attr::Float),
            Kind::Flag => given.flag(self.key).map(|_| attr),
            Kind::Dims => given.dims(self.key).map(|_| attr),
            Kind::Format => given.format(self.key).map(|_| attr),
            Kind::Choice(_) => self.checked(attr),
        };
        Ok(self.leaf(&attr?.to_string()))
    }

    fn checked(&self, attr: Attr) -> Result<Attr, String> {
        match (self.kind, &attr) {
            (Kind::Choice(words), Attr::Word(w)) if words.contains(&w.as_str()) => Ok(attr),
            (Kind::Choice(words), _) => Err(format!("{}={attr} is none of {}", self.key, words.join(", "))),
            _ => Ok(attr),
        }
    }
}

/// An operation as its name shows it.
#[derive(Debug)]
pub struct Signature {
    /// Its name in text, in rules and in the e-graph.
    pub name: &'static str,
    /// How many operands it takes, attributes not counted.
    pub arity: Arity,
    /// Where its operands lie.
    pub reads: Reads,
    /// Where the elements of its result come from.
    pub elements: Elements,
    /// Yields memory rather than registers.
    pub in_memory: bool,
    /// In the order text and terms write them: before the operands of a term, after those of a text.
    pub attributes: Vec<Attribute>,
    family: usize,
}

impl Signature {
    /// An operation of so many operands, in registers or memory, that yields registers and has no attributes.
    pub(super) fn new(name: &'static str, arity: usize) -> Signature {
        Signature {
            name,
            arity: Arity::exactly(arity),
            reads: Reads::Either,
            elements: Elements::Computed,
            in_memory: false,
            attributes: Vec::new(),
            family: 0,
        }
    }

    pub(super) fn of_any(self) -> Signature {
        Signature { arity: Arity::ANY, ..self }
    }

    /// The last `n` operands may be missing.
    pub(super) fn optional(self, n: usize) -> Signature {
        Signature { arity: Arity { least: self.arity.least - n, ..self.arity }, ..self }
    }

    pub(super) fn reads(self, reads: Reads) -> Signature {
        Signature { reads, ..self }
    }

    pub(super) fn elements(self, elements: Elements) -> Signature {
        Signature { elements, ..self }
    }

    pub(super) fn in_memory(self) -> Signature {
        Signature { in_memory: true, ..self }
    }

    pub(super) fn with(self, attributes: impl Into<Vec<Attribute>>) -> Signature {
        Signature { attributes: attributes.into(), ..self }
    }

    /// All operations that text and terms apply, family by family.
    pub fn all() -> &'static [Signature] {
        &TABLE.0
    }

    /// The operation of this name. Sources are declared, not applied, and are none.
    pub fn find(name: &str) -> Option<&'static Signature> {
        TABLE.1.get(name).map(|&i| &TABLE.0[i])
    }

    /// Contracts whole tensors of memory into registers.
    pub fn is_product(&self) -> bool {
        self.reads == Reads::Memory && !self.in_memory
    }

    /// The operation with these attributes, and defaults for those not given.
    ///
    /// # Errors
    /// Which attribute is unknown, missing, or no such value.
    pub fn build(&self, given: &Attrs) -> Result<Op, String> {
        given.known(&self.attributes.iter().map(|a| a.key).collect::<Vec<_>>())?;
        let mut complete = Attrs::default();
        for attribute in &self.attributes {
            let value = match (given.get(attribute.key), &attribute.default) {
                (Some(attr), _) => attribute.checked(attr.clone())?,
                (None, Default::Is(attr)) => attr.clone(),
                (None, Default::Each(key, x)) => Attr::Ints(vec![*x; complete.ints(key)?.len()]),
                // The family says what is missing.
                (None, _) => continue,
            };
            complete.0.push((attribute.key.to_owned(), value));
        }
        FAMILIES[self.family].build(self.name, &complete)
    }

    /// Adds the attributes that the operand's rank decides, and counts axes from the front.
    ///
    /// # Errors
    /// An axis before the first, and the last one of a scalar.
    pub fn fill_in(&self, given: &mut Attrs, rank: usize) -> Result<(), String> {
        let all = 0..rank as i64;
        for attribute in &self.attributes {
            let is_given = given.get(attribute.key).is_some();
            let value = match attribute.default {
                Default::LastAxis if rank == 0 && !is_given => {
                    return Err("goes along an axis, and a scalar has none".to_owned());
                }
                Default::LastAxis => Attr::Int(rank as i64 - 1),
                Default::AllAxes => Attr::Ints(all.clone().collect()),
                Default::LastTwoExchanged if rank >= 2 => {
                    let mut perm: Vec<i64> = all.clone().collect();
                    perm.swap(rank - 1, rank - 2);
                    Attr::Ints(perm)
                }
                _ => continue,
            };
            if !is_given {
                given.0.push((attribute.key.to_owned(), value));
            }
        }
        let behind = -(rank as i64)..0;
        let from_front = |i: &mut i64| {
            if *i < behind.start {
                return Err(format!("axis {i} is out of range for an operand of rank {rank}"));
            }
            if behind.contains(i) {
                *i += rank as i64;
            }
            Ok(())
        };
        for (key, attr) in &mut given.0 {
            match attr {
                Attr::Int(i) if key == "axis" => from_front(i)?,
                Attr::Ints(v) if key == "axes" => v.iter_mut().try_for_each(from_front)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Operations that belong together: their rows, and what they mean. A family is only asked about its own.
pub(super) trait Family: Sync {
    /// The rows, one a name.
    fn signatures(&self) -> Vec<Signature>;
    /// The name in text and in rules.
    fn name(&self, op: &Op) -> &'static str;
    /// Attribute values, in the order of the row.
    fn attrs(&self, op: &Op) -> Vec<Attr>;
    /// The operation of this name; the attributes are complete.
    fn build(&self, name: &str, a: &Attrs) -> Result<Op, String>;
    /// The result type, or what the operands miss. Their number is right.
    fn infer(&self, op: &Op, x: &[&Type]) -> Result<Type, String>;
    /// The value in exact (f64) arithmetic.
    fn eval(&self, op: &Op, x: &[&Tensor], ty: &Type) -> Tensor;
    /// Gradients with respect to the operands.
    fn vjp(&self, op: &Op, c: Context) -> Gradients;
    /// The same value by simpler operations; none if it is none of several.
    fn spelled(&self, _: &Op, _: &mut Graph, _: &[NodeId]) -> crate::error::Result<Option<NodeId>> {
        Ok(None)
    }
}

type Table = (Vec<Signature>, FxHashMap<&'static str, usize>);

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut rows = Vec::new();
    for (family, own) in FAMILIES.iter().enumerate() {
        rows.extend(own.signatures().into_iter().map(|row| Signature { family, ..row }));
    }
    let names = rows.iter().enumerate().map(|(i, row)| (row.name, i)).collect();
    (rows, names)
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::ir::Num;

    /// Some value of an attribute's kind.
    fn some(attribute: &Attribute) -> Attr {
        match attribute.kind {
            Kind::Int => Attr::Int(1),
            Kind::Ints => Attr::Ints(vec![1]),
            Kind::Number => Attr::Float(Num::new(0.5)),
            Kind::Flag => Attr::Bool(true),
            Kind::Dims => Attr::Dims(super::super::Shape::of(&[2])),
            Kind::Format => Attr::Format(Format::F16),
            Kind::Choice(words) => Attr::Word(words[words.len() - 1].to_owned()),
        }
    }

    /// Names are unique, every row builds what has that name, and its attributes come back as they were given.
    #[test]
    fn rows_and_operations_are_inverse() {
        let mut seen = std::collections::BTreeSet::new();
        for row in Signature::all() {
            assert!(seen.insert(row.name), "two rows are called {}", row.name);
            let given = Attrs(row.attributes.iter().map(|a| (a.key.to_owned(), some(a))).collect());
            let op = row.build(&given).unwrap_or_else(|e| panic!("{}: {e}", row.name));
            assert_eq!(op.name(), row.name);
            let back: Vec<(String, Attr)> = op.attrs().into_iter().map(|(k, a)| (k.to_owned(), a)).collect();
            if row.name != "cross_entropy" && row.name != "mse" && row.name != "bce_with_logits" {
                assert_eq!(back, given.0, "{}", row.name);
            }
            for (attribute, (_, value)) in row.attributes.iter().zip(&back) {
                let leaf = attribute.leaf(&value.to_string());
                let read = Attrs(vec![(attribute.key.to_owned(), attribute.of_leaf(&leaf).expect("a leaf"))]);
                assert!(row.build(&read).is_ok() || row.attributes.len() > 1, "{leaf}");
            }
        }
    }

    #[test]
    fn what_is_no_attribute_is_told() {
        let given = Attrs(vec![("axis".to_owned(), Attr::Int(1))]);
        let error = Signature::find("sum").expect("a sum").build(&given).expect_err("sums have axes");
        assert_eq!(error, "there is no attribute `axis`; it takes axes, keep; is `axes` meant?");
    }
}
