//! Executing programs.

mod choose;
pub mod cpu;
mod device;
mod init;
mod memory;

pub use choose::DeviceKind;
pub use device::Device;
pub use init::initialise;
pub use memory::Bytes;
