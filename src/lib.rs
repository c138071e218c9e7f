//! Mantissa: a compiler for mixed-precision training.

pub mod autodiff;
pub mod cli;
pub mod cost;
pub mod data;
pub mod error;
pub mod files;
pub mod format;
pub mod hint;
pub mod ir;
pub mod lower;
pub mod measure;
pub mod memory;
pub mod model;
pub mod plan;
pub mod rewrite;
pub mod run;
pub mod train;
pub mod trainer;

pub use error::{Error, Result};
