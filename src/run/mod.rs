//! Executing programs.

mod choose;
pub mod cpu;
pub mod cuda;
mod device;
mod init;
mod watch;

pub use crate::memory::Bytes;
pub use choose::DeviceKind;
pub use device::{Backend, Device};
pub use init::initialise;
pub use watch::{Watched, Watcher};
