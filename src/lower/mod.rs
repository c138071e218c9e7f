//! From a planned graph to kernels: what shares a kernel, and where buffers live.

mod axes;
mod buffers;
pub mod cuda;
mod emit;
mod empty;
mod expand;
mod kernel;
mod launches;
mod layout;
mod long_rows;
mod lowering;
mod lying;
mod merge;
mod print;
mod program;
mod region;
mod scan;
mod stages;
mod view;

pub use buffers::{Arena, Memory, Slot};
pub use kernel::{
    Address, Attention, BufferId, Contraction, Conv, Exit, Gemm, Inst, Kernel, Level, Load, Loop, Product, Reg,
    Scatter, Store, Strided,
};
pub use layout::{LoopKind, launches_of, rows_at_once, waits};
pub use lowering::{lower, lower_visibly, outline};
pub use print::print_program;
pub use program::{BufferInfo, Call, InLoop, Program};
pub use region::{resolve_view, view_through};
pub use stages::{Pass, passes};
pub use view::{Guard, View};
