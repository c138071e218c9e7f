//! `mantissa doctor`.

use crate::error::Result;

pub fn run() -> Result<()> {
    Ok(())
}
