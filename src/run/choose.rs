//! Which device to run on.

use super::cpu::CpuRunner;
use super::cuda::{self, CudaRunner};
use super::device::Device;
use crate::error::{Error, Result};
use crate::lower::Program;
use std::collections::HashMap;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Cpu,
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

    /// Puts a program on the device. `cubins` are kernels compiled before, by [`cuda::key`].
    pub fn open(self, program: Program, cubins: &HashMap<String, Vec<u8>>) -> Result<Box<dyn Device>> {
        match self.resolved() {
            DeviceKind::Cuda => Ok(Box::new(CudaRunner::new(program, cubins)?)),
            _ => Ok(Box::new(CpuRunner::open(program)?)),
        }
    }
}
