//! Executing programs.

mod choose;
pub mod cpu;
pub mod cuda;
mod device;
mod init;

pub use crate::memory::Bytes;
pub use choose::DeviceKind;
pub use device::{Backend, Device, Watcher};
pub use init::initialise;
