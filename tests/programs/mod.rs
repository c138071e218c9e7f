//! Random programs: networks nobody would write, and what they must compute.
//!
//! [`generate`] makes a model of bytes: any bytes make one, and fewer bytes a simpler one, so that [`draw::shrink`] needs
//! to know nothing of programs. [`judge`] compares what the compiler makes of a model with the reference evaluator, which
//! runs the model as it stands, unplanned and unrewritten, in f64.
#![allow(dead_code, reason = "tests and examples use some of these each")]

pub mod as_onnx;
pub mod draw;
pub mod generate;
pub mod judge;
pub mod noisy;

pub use generate::generate;
