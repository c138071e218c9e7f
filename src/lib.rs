//! Mantissa: a compiler for mixed-precision training.

pub mod autodiff;
pub mod error;
pub mod format;
pub mod hint;
pub mod ir;
pub mod cost;
pub mod lower;
pub mod plan;
pub mod rewrite;
pub mod run;
pub mod train;

pub use error::{Error, Result};
