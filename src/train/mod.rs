//! Training: from a model and a recipe to a step, and running it over data.

mod recipe;
mod step;
mod task;

pub use recipe::{Decay, Optimizer, Recipe, Scaler, ScalerMode, Schedule};
pub use step::{build_step, names};
pub use task::{Head, Task};
