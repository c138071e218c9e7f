//! Which device to run on.

use super::cpu::CpuRunner;
use super::device::Device;
use crate::error::{Error, Result};
use crate::lower::Program;
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
    pub fn open(self, program: Program) -> Result<Box<dyn Device>> {
        match self {
            DeviceKind::Cpu | DeviceKind::Auto => Ok(Box::new(CpuRunner::new(program))),
            DeviceKind::Cuda => Err(Error::Device("no CUDA".into())),
        }
    }
}
