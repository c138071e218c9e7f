//! The one graph representation: typed, topologically ordered, printable.
//!
//! A model, its training step and a precision plan are all [`Graph`]s. Values are computed in f32 registers;
//! [`Op::Put`] rounds a value and writes it to memory, [`Op::Cast`] copies memory to another format, and reading a
//! narrow buffer widens exactly. So a graph without `put` says what to compute, and one with `put` also says how
//! every value travels.

mod eval;
mod graph;
pub mod ops;
mod spell;
mod tensor;
pub mod text;
mod types;
mod verify;

pub use eval::{evaluate, evaluate_node};
pub use graph::{Graph, Named, Node, NodeId, Output, Role, Stage};
pub(crate) use ops::standardise;
pub use ops::{
    AttentionPart, AttentionSpec, Attr, Attrs, Binary, Body, ConvKind, ConvSpec, Init, Loss, Num, Op, ReduceKind, Scan,
    ScatterKind, Take, Unary,
};
pub use tensor::Tensor;
pub use types::{Dim, Shape, Type};
pub use verify::{Verified, verify};
