//! Attribute values: what stands between an operation's parentheses besides operands.

use super::{Dim, Shape};
use crate::format::Format;
use crate::hint::is_meant;
use std::fmt;

/// An f64 that can be compared and hashed by its bits, so operations can be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Num(u64);

impl Num {
    /// The number with the bits of x: 0 and −0 differ, and a NaN equals itself.
    pub fn new(x: f64) -> Num {
        Num(x.to_bits())
    }
    /// The number to compute with.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl fmt::Debug for Num {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Num {
    /// The shortest text that reads back to the same bits.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let x = self.get();
        if x.is_nan() {
            f.write_str("nan")
        } else if x != 0.0 && x.is_finite() && !(1e-4..1e15).contains(&x.abs()) {
            write!(f, "{x:e}")
        } else {
            write!(f, "{x}")
        }
    }
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// A whole number: digits alone, and perhaps a sign.
    Int(i64),
    /// Whole numbers in brackets, as axes and strides are.
    Ints(Vec<i64>),
    /// A number with a point or an exponent, `inf` or `nan`.
    Float(Num),
    /// `true` or `false`.
    Bool(bool),
    /// Extents in brackets, numbers or names.
    Dims(Shape),
    /// A number format, by its name.
    Format(Format),
    /// Any other name.
    Word(String),
}

impl Attr {
    pub(super) fn int(n: usize) -> Attr {
        Attr::Int(n as i64)
    }

    pub(super) fn ints(v: &[usize]) -> Attr {
        Attr::Ints(v.iter().map(|&x| x as i64).collect())
    }

    pub(super) fn number(x: f64) -> Attr {
        Attr::Float(Num::new(x))
    }

    pub(super) fn word(w: &str) -> Attr {
        Attr::Word(w.to_owned())
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Attr::Int(i) => write!(f, "{i}"),
            Attr::Ints(v) => write!(f, "{v:?}"),
            Attr::Float(x) => write!(f, "{x}"),
            Attr::Bool(b) => write!(f, "{b}"),
            Attr::Dims(s) => write!(f, "{s}"),
            Attr::Format(x) => write!(f, "{x}"),
            Attr::Word(w) => f.write_str(w),
        }
    }
}

/// Attributes by name, as a parser found them: bracketed lists are [`Attr::Dims`], numbers ints or floats.
#[derive(Clone, Debug, Default)]
pub struct Attrs(pub Vec<(String, Attr)>);

impl Attrs {
    /// The value of this name, if it was given.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }

    /// Are these attributes of something that takes these keys, each once?
    ///
    /// # Errors
    /// Which one is not.
    pub fn known(&self, keys: &[&str]) -> Result<(), String> {
        for (i, (key, _)) in self.0.iter().enumerate() {
            if self.0[..i].iter().any(|(before, _)| before == key) {
                return Err(format!("the attribute `{key}` is given twice"));
            }
            if !keys.contains(&key.as_str()) {
                let takes =
                    if keys.is_empty() { "it takes none".to_owned() } else { format!("it takes {}", keys.join(", ")) };
                return Err(format!("there is no attribute `{key}`; {takes}{}", is_meant(key, keys.iter().copied())));
            }
        }
        Ok(())
    }

    fn need<T>(&self, name: &str, what: &str, f: impl Fn(&Attr) -> Option<T>) -> Result<T, String> {
        let attr = self.get(name).ok_or_else(|| format!("needs {name}={what}"))?;
        f(attr).ok_or_else(|| match attr {
            // A point tells that it is no whole number, whatever is behind it.
            Attr::Float(x) => format!("{name}={:?} is not {what}", x.get()),
            Attr::Int(i) if *i < 0 => format!("{name}={i} is below 0"),
            _ => format!("{name}={attr} is not {what}"),
        })
    }

    pub(crate) fn int(&self, name: &str) -> Result<usize, String> {
        self.need(name, "a whole number", |a| if let Attr::Int(i) = a { usize::try_from(*i).ok() } else { None })
    }

    pub(crate) fn ints(&self, name: &str) -> Result<Vec<usize>, String> {
        self.need(name, "a list of whole numbers", |a| match a {
            Attr::Ints(v) => v.iter().map(|&i| usize::try_from(i).ok()).collect(),
            Attr::Dims(s) => s.fixed(),
            _ => None,
        })
    }

    pub(crate) fn dims(&self, name: &str) -> Result<Shape, String> {
        self.need(name, "a shape", |a| if let Attr::Dims(s) = a { Some(s.clone()) } else { None })
    }

    /// A single extent, written as a shape of one axis: `[128]` or `[batch]`.
    pub(crate) fn extent(&self, name: &str) -> Result<Dim, String> {
        self.need(name, "one extent, as in [128]", |a| match a {
            Attr::Dims(Shape(dims)) if dims.len() == 1 => dims.first().cloned(),
            _ => None,
        })
    }

    pub(crate) fn float(&self, name: &str) -> Result<Num, String> {
        self.need(name, "a number", |a| match a {
            Attr::Float(x) => Some(*x),
            Attr::Int(i) => Some(Num::new(*i as f64)),
            _ => None,
        })
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, String> {
        self.need(name, "true or false", |a| if let Attr::Bool(b) = a { Some(*b) } else { None })
    }

    pub(crate) fn format(&self, name: &str) -> Result<Format, String> {
        self.need(name, "a format", |a| if let Attr::Format(f) = a { Some(*f) } else { None })
    }

    pub(crate) fn word(&self, name: &str) -> Result<String, String> {
        self.need(name, "a name", |a| match a {
            Attr::Word(w) => Some(w.clone()),
            // A name that is also a format's.
            Attr::Format(f) => Some(f.to_string()),
            _ => None,
        })
    }
}
