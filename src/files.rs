//! Files written whole or not at all.

use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Writes a file whole or not at all: to a temporary name beside it, then renamed.
///
/// # Errors
/// What the file system refuses: of the folder, or of the file. What was there before is there still.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A temporary file's errors name that file, so what is wrong with the folder is asked of the folder.
    let plain = |e: std::io::Error| std::fs::read_dir(dir).err().unwrap_or_else(|| e.kind().into());
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("write", path)(plain(e)))?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io("write", path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let plain = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(plain).map_err(Error::io("write", path))?;
    }
    file.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
    Ok(())
}

/// Writes an executable file, whole or not at all.
///
/// # Errors
/// Those of [`write_atomically`], and permissions that cannot be set.
pub fn write_executable(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, bytes)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
            .map_err(Error::io("make executable", path))?;
    }
    Ok(())
}
