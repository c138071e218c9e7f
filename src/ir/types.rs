//! Shapes with symbolic sizes, and the type of a value: shape and format.

use crate::format::Format;
use std::collections::BTreeMap;
use std::fmt;

/// One extent of a shape: a number, or a name bound when the graph is compiled (`batch`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    /// A number of elements.
    Fixed(usize),
    /// A size that [`super::Graph::bind`] puts a number for.
    Named(String),
}

impl Dim {
    pub(crate) fn is_one(&self) -> bool {
        *self == Dim::Fixed(1)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Fixed(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Named(s) => f.write_str(s),
        }
    }
}

/// Extents, outermost first; an empty shape is a scalar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// The shape of a single number: no axes.
    pub fn scalar() -> Shape {
        Shape::default()
    }

    /// A shape whose extents are all known, outermost first.
    pub fn of(dims: &[usize]) -> Shape {
        Shape(dims.iter().map(|&d| Dim::Fixed(d)).collect())
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The extents as numbers, or `None` while one of them is a name.
    pub fn fixed(&self) -> Option<Vec<usize>> {
        self.0.iter().map(|d| if let Dim::Fixed(n) = d { Some(*n) } else { None }).collect()
    }

    /// Product of the fixed extents and the sorted names: two shapes hold equally many elements for every binding
    /// exactly if these agree.
    pub fn count(&self) -> (usize, Vec<&str>) {
        let mut names: Vec<&str> =
            self.0.iter().filter_map(|d| if let Dim::Named(s) = d { Some(s.as_str()) } else { None }).collect();
        names.sort_unstable();
        let fixed = self.0.iter().map(|d| if let Dim::Fixed(n) = d { *n } else { 1 });
        (fixed.fold(1, usize::saturating_mul), names)
    }

    /// NumPy's broadcasting rule: align at the right; equal extents, or one of them 1.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.rank().max(other.rank());
        let at = |s: &Shape, i: usize| (i + s.rank()).checked_sub(rank).map_or(Dim::Fixed(1), |j| s.0[j].clone());
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let (a, b) = (at(self, i), at(other, i));
            out.push(match (a, b) {
                (a, b) if a == b => a,
                (a, b) if b.is_one() => a,
                (a, b) if a.is_one() => b,
                _ => return None,
            });
        }
        Some(Shape(out))
    }

    /// The shape with names replaced by sizes. Names that `sizes` lacks stay.
    pub fn bind(&self, sizes: &BTreeMap<String, usize>) -> Shape {
        Shape(
            self.0
                .iter()
                .map(|d| match d {
                    Dim::Named(s) => sizes.get(s).map_or_else(|| d.clone(), |&n| Dim::Fixed(n)),
                    Dim::Fixed(_) => d.clone(),
                })
                .collect(),
        )
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        f.write_str("]")
    }
}

/// What a node yields. Values are `f32` (or `f64`, integer, boolean) registers; sources, `put` and `cast` yield memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Type {
    /// Extents of the value.
    pub shape: Shape,
    /// Format of its elements, in registers or in memory.
    pub format: Format,
}

impl Type {
    /// The type of values of this shape and format.
    pub fn new(shape: Shape, format: Format) -> Type {
        Type { shape, format }
    }

    /// Extents of a bound type. Panics on a name: passes behind [`super::Graph::bind`] never see one.
    pub fn dims(&self) -> Vec<usize> {
        self.shape.fixed().expect("a bound graph has no named extents")
    }

    /// The most elements that a value may have: products of extents stay far from overflow.
    pub const MOST: usize = 1 << 40;

    /// The type, unless the extents that are known multiply to more elements than [`Type::MOST`]; an extent of 0 counts
    /// as 1, so that views of a value without elements stay countable too.
    pub(crate) fn countable(self) -> Result<Type, String> {
        let mut extents = self.shape.0.iter().map(|d| if let Dim::Fixed(n) = d { (*n).max(1) } else { 1 });
        match extents.try_fold(1usize, usize::checked_mul) {
            Some(elements) if elements <= Type::MOST => Ok(self),
            _ => Err(format!("the result, {self}, has more than 2^{} elements", Type::MOST.ilog2())),
        }
    }

    /// Number of elements of a bound type. Panics on a name, as [`Type::dims`] does.
    pub fn elements(&self) -> usize {
        let extent = |d: &Dim| if let Dim::Fixed(n) = d { *n } else { panic!("a bound graph has no named extents") };
        self.shape.0.iter().map(extent).product()
    }

    /// Bytes of a bound type in memory, without gaps.
    pub fn bytes(&self) -> usize {
        self.elements() * self.format.bytes()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{}", self.format, if self.shape.rank() == 0 { String::new() } else { self.shape.to_string() })
    }
}
