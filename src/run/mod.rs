//! Executing programs.

mod choose;
pub mod cpu;
pub mod cuda;
mod device;
mod init;
mod memory;

pub use choose::DeviceKind;
pub use device::Device;
pub use init::initialise;
pub use memory::Bytes;
