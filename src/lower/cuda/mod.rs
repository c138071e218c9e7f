//! CUDA source for a program: functors generated from tapes, instantiations of the templates in `kernels/`.
//!
//! Nothing here needs a GPU. [`generate`] yields text, and for every launch its geometry and arguments; a runtime fills
//! in addresses.

mod attention;
mod functor;
mod kinds;
mod launch;
mod plan;
mod real;
mod spread;

pub use launch::{CudaProgram, Destination, Launch, Word};
pub use plan::generate;
pub use spread::{WORDS, spread_kernel, spread_of, spread_source};

/// The headers, by the name generated code includes them under.
pub const HEADERS: [(&str, &str); 7] = [
    ("mantissa.cuh", include_str!("../../../kernels/mantissa.cuh")),
    ("pointwise.cuh", include_str!("../../../kernels/pointwise.cuh")),
    ("reduce.cuh", include_str!("../../../kernels/reduce.cuh")),
    ("conv.cuh", include_str!("../../../kernels/conv.cuh")),
    ("attention.cuh", include_str!("../../../kernels/attention.cuh")),
    ("scatter.cuh", include_str!("../../../kernels/scatter.cuh")),
    ("spread.cuh", include_str!("../../../kernels/spread.cuh")),
];

/// Options every compilation uses. Contraction is off, so that sums and products round as the CPU executor's do.
pub const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "--device-as-default-execution-space"];
