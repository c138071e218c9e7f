//! Which device to run on.

use super::cpu::Cpu;
use super::cuda::{self, Cuda};
use super::device::Backend;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::str::FromStr;

/// A kind of device, as people ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// This machine's processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
    /// CUDA if there is a GPU, else the CPU.
    Auto,
}

impl FromStr for DeviceKind {
    type Err = Error;
    fn from_str(s: &str) -> Result<DeviceKind> {
        match s {
            "cpu" => Ok(DeviceKind::Cpu),
            "cuda" => Ok(DeviceKind::Cuda),
            "auto" => Ok(DeviceKind::Auto),
            _ => Err(Error::Request(format!("unknown device `{s}`; devices are cpu, cuda and auto"))),
        }
    }
}

impl DeviceKind {
    /// The CPU or CUDA: what `Auto` stands for on this machine.
    pub fn resolved(self) -> DeviceKind {
        match self {
            DeviceKind::Auto if cuda::available() => DeviceKind::Cuda,
            DeviceKind::Auto => DeviceKind::Cpu,
            kind => kind,
        }
    }

    /// What runs programs on such a device.
    pub fn backend(self) -> Box<dyn Backend> {
        self.with_kernels(HashMap::new())
    }

    /// [`DeviceKind::backend`], with kernels that were compiled for GPUs before, by [`cuda::key`].
    pub fn with_kernels(self, kernels: HashMap<String, Vec<u8>>) -> Box<dyn Backend> {
        match self.resolved() {
            DeviceKind::Cuda => Box::new(Cuda { kernels }),
            _ => Box::new(Cpu),
        }
    }
}
