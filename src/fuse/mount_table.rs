//! What is mounted where, from /proc/self/mountinfo.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};

/// The type that our mounts carry in /proc/mounts; mount(8) finds the helper `mount.fuse` by it.
pub(super) const FILE_SYSTEM_TYPE: &str = "fuse.warpfs";

/// One line of the mount table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The device number, as stat(2) gives it.
    pub(super) device: (u32, u32),
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
    /// As in "ext4" or "fuse.warpfs".
    pub(super) file_system_type: OsString,
}

/// The topmost mount at exactly this path, which must be canonical.
///
/// # Errors
/// The table cannot be read.
pub(super) fn topmost_at(path: &Path) -> Result<Option<Entry>> {
    Ok(all_at(path)?.pop())
}

/// The mounts at exactly this path, which must be canonical, the topmost last.
///
/// # Errors
/// The table cannot be read.
pub(super) fn all_at(path: &Path) -> Result<Vec<Entry>> {
    let table_path = Path::new("/proc/self/mountinfo");
    let table = std::fs::read(table_path).context("cannot read", table_path)?;
    Ok(table
        .split(|&byte| byte == b'\n')
        .filter_map(parse)
        .filter(|entry| entry.mount_point == path)
        .collect())
}

/// Reads a line as proc(5) describes it: number, parent, major:minor, root, mount point, options, optional fields,
/// a hyphen, type, source, super options.
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mount_point = unescape(fields.nth(1)?);
    let file_system_type = fields.skip_while(|&field| field != b"-").nth(1)?;
    Some(Entry {
        device: (major.parse().ok()?, minor.parse().ok()?),
        mount_point: PathBuf::from(OsString::from_vec(mount_point)),
        file_system_type: std::ffi::OsStr::from_bytes(file_system_type).to_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        if byte == b'\\'
            && let Some((digits, behind)) = behind.split_first_chunk::<3>()
            && let Ok(digits) = std::str::from_utf8(digits)
            && let Ok(byte) = u8::from_str_radix(digits, 8)
        {
            bytes.push(byte);
            rest = behind;
        } else {
            bytes.push(byte);
            rest = behind;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_blanks_and_optional_fields_is_read() {
        let line =
            br"36 35 98:7 /root /mnt/a\040b\134 rw,noatime shared:1 master:2 - fuse.warpfs /src ro";
        let entry = parse(line).unwrap();
        assert_eq!(entry.device, (98, 7));
        assert_eq!(entry.mount_point, Path::new(r"/mnt/a b\"));
        assert_eq!(entry.file_system_type, FILE_SYSTEM_TYPE);
    }

    #[test]
    fn the_root_is_mounted_and_an_empty_directory_is_not() {
        assert!(topmost_at(Path::new("/")).unwrap().is_some());
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(topmost_at(directory.path()).unwrap(), None);
    }
}
