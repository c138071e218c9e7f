//! Mantissa: a compiler for mixed-precision training.
//!
//! A model becomes one graph of a whole training step, an e-graph of all ways in which its values can travel, a plan that
//! says in which format each of them does, and kernels. The command line does this from files; these names do it from Rust.
//!
//! | to | take |
//! |---|---|
//! | read a model, `.mir` or ONNX | [`Model`] |
//! | say how it is planned and trained | [`Settings`], [`Recipe`], [`Policy`], [`Target`]; a run file is a [`RunFile`] |
//! | plan it | [`Settings::compile`] with a [`RuleSet`]: a [`Compiled`] step, whose [`Planned`] graph [`print_table`] shows |
//! | run it | [`Session`], on a [`Backend`]: [`Cpu`], [`Cuda`], or what [`DeviceKind::backend`] finds |
//! | train to the end, with files | [`train()`], at a [`Place`], with [`Progress`] |
//! | read data | [`load`], a [`Dataset`] from a [`Source`] |
//! | keep what was trained | [`Checkpoint`] |
//! | look at a graph | [`Graph`], written and read by [`text`] |
//!
//! ```
//! use mantissa::{Cpu, Format, Graph, Model, RuleSet, Session, Settings, print_table, text};
//!
//! # fn main() -> mantissa::Result<()> {
//! let net = "model net {
//!     input x: f32[batch, 8]  label y: i64[batch]
//!     param w: f32[8, 3] = xavier_uniform
//!     loss = cross_entropy(x @ w, y)
//! }";
//! let model = Model::from_graph(text::parse(net, "net.mir")?);
//! // Autocast's lists in f16, AdamW, dynamic loss scaling: the defaults.
//! let settings = Settings::default();
//! let compiled = settings.compile(&model, &RuleSet::builtin()?, None)?;
//! assert!(print_table(&compiled.planned, &settings.request()?)?.contains("product f16"));
//!
//! // What the plan stores is a node of its own, in its format.
//! let planned: &Graph = &compiled.planned.graph;
//! let gradient = planned.find("d.w").expect("weights have gradients");
//! assert_eq!(planned.ty(gradient).format, Format::F32);
//!
//! let session = Session::new(compiled, 0, &Cpu)?;
//! assert_eq!(session.epoch, 0);
//! # Ok(())
//! # }
//! ```
//!
//! What the modules hold besides is for this project's own programs and tests, and may change with any version.

#![warn(missing_docs, clippy::missing_errors_doc)]

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

pub use cost::Target;
pub use data::{Dataset, Source, load};
pub use error::{Error, Result};
pub use format::Format;
pub use ir::{Graph, text};
pub use model::{Checkpoint, Model};
pub use plan::{Planned, Policy, print_table};
pub use rewrite::RuleSet;
pub use run::cpu::Cpu;
pub use run::cuda::Cuda;
pub use run::{Backend, Device, DeviceKind};
pub use train::{Compiled, Place, Progress, Recipe, RunFile, Session, Settings, train};
