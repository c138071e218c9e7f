//! From a planned graph to kernels: what shares a kernel, and where buffers live.

mod buffers;
pub mod cuda;
mod expand;
mod kernel;
mod print;
mod program;
mod region;
mod stages;
mod view;

pub use buffers::{Arena, Slot};
pub use expand::expand;
pub use kernel::{Exit, Gemm, Guard, Inst, Kernel, Level, Load, Loop, Reg, Store};
pub use print::print_program;
pub use program::{BufferId, BufferInfo, Program, lower};
pub use region::{Region, Regions, regions};
pub use stages::{Pass, passes};
pub use view::View;
