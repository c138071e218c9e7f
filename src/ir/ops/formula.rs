//! Formulas over a graph: arithmetic on [`Expr`]s appends the operations it spells, so that a gradient reads as it is
//! written on paper.
//!
//! An operation that has no type ends the formula: what follows is not computed, and [`formula`] returns the error.

use super::{Binary, Num, Op, ReduceKind, Unary};
use crate::error::{Error, Result};
use crate::ir::graph::{Graph, NodeId};
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A graph that a formula is written into.
pub(super) struct Sheet<'g> {
    graph: RefCell<&'g mut Graph>,
    fault: RefCell<Option<Error>>,
}

/// A value of a formula.
#[derive(Clone, Copy)]
pub(super) struct Expr<'s, 'g> {
    sheet: &'s Sheet<'g>,
    pub id: NodeId,
}

/// Writes a formula into a graph; what it returns are its results.
pub(super) fn formula<'g, T>(graph: &'g mut Graph, write: impl FnOnce(&Sheet<'g>) -> T) -> Result<T> {
    let sheet = Sheet { graph: RefCell::new(graph), fault: RefCell::new(None) };
    let results = write(&sheet);
    sheet.fault.into_inner().map_or(Ok(results), Err)
}

impl<'g> Sheet<'g> {
    pub fn value<'s>(&'s self, id: NodeId) -> Expr<'s, 'g> {
        Expr { sheet: self, id }
    }

    pub fn constant<'s>(&'s self, x: f64) -> Expr<'s, 'g> {
        let id = self.graph.borrow_mut().add(Op::Const(Num::new(x)), &[]);
        self.held(id, NodeId::end())
    }

    /// `c ? a : b`
    pub fn select<'s>(&'s self, c: Expr<'s, 'g>, a: Expr<'s, 'g>, b: Expr<'s, 'g>) -> Expr<'s, 'g> {
        self.apply(Op::Select, &[c, a, b])
    }

    fn apply<'s>(&'s self, op: Op, x: &[Expr<'s, 'g>]) -> Expr<'s, 'g> {
        if self.fault.borrow().is_some() {
            return x[0];
        }
        let ids: Vec<NodeId> = x.iter().map(|x| x.id).collect();
        let result = self.graph.borrow_mut().add(op, &ids);
        self.held(result, ids[0])
    }

    /// The value, or the error kept for the end of the formula.
    fn held<'s>(&'s self, result: Result<NodeId>, instead: NodeId) -> Expr<'s, 'g> {
        let id = result.unwrap_or_else(|e| {
            self.fault.borrow_mut().get_or_insert(e);
            instead
        });
        self.value(id)
    }
}

impl<'s, 'g> Expr<'s, 'g> {
    pub fn unary(self, u: Unary) -> Self {
        self.sheet.apply(Op::Unary(u), &[self])
    }

    pub fn binary(self, b: Binary, other: Self) -> Self {
        self.sheet.apply(Op::Binary(b), &[self, other])
    }

    pub fn square(self) -> Self {
        self.unary(Unary::Square)
    }

    /// The sum, or the mean, over axes that stay with extent 1.
    pub fn reduce(self, kind: ReduceKind, axes: &[usize]) -> Self {
        self.sheet.apply(Op::Reduce { kind, axes: axes.to_vec(), keep: true }, &[self])
    }

    /// The number, if the value is a constant.
    pub fn constant(self) -> Option<f64> {
        if let Op::Const(c) = self.sheet.graph.borrow().op(self.id) { Some(c.get()) } else { None }
    }

    pub fn is_scalar(self) -> bool {
        self.sheet.graph.borrow().shape(self.id).rank() == 0
    }
}

macro_rules! arithmetic {
    ($($op:ident :: $method:ident),*) => { $(
        impl<'s, 'g> $op for Expr<'s, 'g> {
            type Output = Self;
            fn $method(self, other: Self) -> Self {
                self.binary(Binary::$op, other)
            }
        }
        impl<'s, 'g> $op<f64> for Expr<'s, 'g> {
            type Output = Self;
            fn $method(self, other: f64) -> Self {
                self.binary(Binary::$op, self.sheet.constant(other))
            }
        }
        impl<'s, 'g> $op<Expr<'s, 'g>> for f64 {
            type Output = Expr<'s, 'g>;
            fn $method(self, other: Expr<'s, 'g>) -> Expr<'s, 'g> {
                other.sheet.constant(self).binary(Binary::$op, other)
            }
        }
    )* };
}
arithmetic!(Add::add, Sub::sub, Mul::mul, Div::div);

impl Neg for Expr<'_, '_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.unary(Unary::Neg)
    }
}
