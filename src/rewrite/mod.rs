//! Equality saturation over a training step.
//!
//! Every edge of the graph is an e-class, and its members are the ways a value can travel: `(pass v)`, not
//! materialised, or `(get b)`, rounded and through memory in some format. Rules in `rules/*.rules` add members;
//! [`crate::plan`] picks among them.

mod apply;
pub mod check;
mod conditions;
mod encode;
mod language;
mod reader;
mod rule;
mod rules;
mod schedule;
mod sexpr;
mod typed;

pub use conditions::CONDITIONS;
pub use encode::{Encoded, encode};
pub use language::{Allow, Fact, Facts, Head, Sort, Term, decode_op, forms, is_product, is_source};
pub use reader::SETS;
pub use rule::{Arrow, Rule};
pub use rules::RuleSet;
pub use schedule::{PHASES, PhaseReport, RECOGNITION, saturate};

/// The e-graph of a step.
pub type EGraph = egg::EGraph<Term, Facts>;
