//! What is mounted where, from /proc/self/mountinfo.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use crate::error::{IoContext, Result};

/// The type that our mounts carry in /proc/mounts; mount(8) finds the helper `mount.fuse` by it.
pub(crate) const FILE_SYSTEM_TYPE: &str = "fuse.warpfs";

/// One line of the mount table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The mount's number, as statx(2) gives it.
    id: u64,
    /// The device number, as stat(2) gives it.
    pub(crate) device: (u32, u32),
    /// Which directory or file of its file system is mounted.
    root: PathBuf,
    /// Where it is mounted.
    pub(crate) mount_point: PathBuf,
    /// As in "ext4" or "fuse.warpfs".
    pub(crate) file_system_type: OsString,
    /// What is mounted, as whoever mounted it has put it.
    pub(crate) source: PathBuf,
}

impl Entry {
    /// Whether it is a mount of ours that shows `source`.
    pub(crate) fn is_ours(&self, source: &Path) -> bool {
        self.file_system_type == FILE_SYSTEM_TYPE && self.source == source
    }
}

/// Where a file system is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// The place.
    pub(crate) mount_point: PathBuf,
    /// Whether another mount lies over it, at the very same place or at a directory above.
    pub(crate) covered: bool,
}

/// The mount at exactly this path, which must be canonical, that whoever goes there gets to.
///
/// # Errors
/// The table cannot be read.
pub(crate) fn topmost_at(path: &Path) -> Result<Option<Entry>> {
    let at_path = |entry: &Entry| entry.mount_point == path && is_reached(entry);
    Ok(read()?.into_iter().rfind(at_path))
}

/// The mount of ours at exactly this path, which must be canonical, that shows `source`: the last one that was made there, be it
/// covered or not.
///
/// # Errors
/// The table cannot be read.
pub(crate) fn last_of_ours_at(path: &Path, source: &Path) -> Result<Option<Entry>> {
    let is_it = |entry: &Entry| entry.mount_point == path && entry.is_ours(source);
    Ok(read()?.into_iter().rfind(is_it))
}

/// Where the file system of this device number is mounted, also by way of bind mounts and moved directories.
///
/// # Errors
/// The table cannot be read.
pub(crate) fn of_device(device: (u32, u32)) -> Result<Vec<Mounted>> {
    Ok(of_device_in(&read()?, device, is_reached))
}

fn of_device_in(
    table: &[Entry],
    device: (u32, u32),
    is_reached: impl Fn(&Entry) -> bool,
) -> Vec<Mounted> {
    let topmost_at = |path| {
        let at_path = |entry: &&Entry| entry.mount_point == path && is_reached(entry);
        table.iter().rfind(at_path)
    };
    let from_the_top = table.iter().rev().filter(|entry| entry.device == device);
    from_the_top
        .map(|entry| Mounted {
            mount_point: entry.mount_point.clone(),
            covered: topmost_at(&*entry.mount_point).is_none_or(|topmost| topmost.id != entry.id),
        })
        .collect()
}

/// Whether the path of a mount leads to it. Where the system does not say so, as before Linux 5.8, it is taken to: of several at the
/// same place, the last is the topmost then, as a rule. The mount's server is not asked.
fn is_reached(entry: &Entry) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match rustix::fs::statx(CWD, &entry.mount_point, flags, StatxFlags::empty()) {
        Ok(found) if found.stx_mask & StatxFlags::MNT_ID.bits() != 0 => {
            found.stx_mnt_id == entry.id
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => false,
        Ok(_) | Err(_) => true,
    }
}

/// Where else the file or directory at `path`, which must be canonical, may be found: by way of bind mounts. The kernel
/// copies a mount at one of these places to the others, where they share what is mounted ("shared subtrees"). Some of
/// the places may be covered by something else.
///
/// # Errors
/// The table cannot be read.
pub(crate) fn other_places(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(other_places_in(&read()?, path))
}

fn other_places_in(table: &[Entry], path: &Path) -> Vec<PathBuf> {
    let holds_path = |entry: &&Entry| path.starts_with(&entry.mount_point);
    // Of several at the same place, the last is the topmost.
    let own = table
        .iter()
        .filter(holds_path)
        .max_by_key(|entry| entry.mount_point.components().count());
    let Some(own) = own else {
        return Vec::new();
    };
    let Ok(inside) = path.strip_prefix(&own.mount_point) else {
        return Vec::new();
    };
    let in_file_system = own.root.join(inside);
    let same_file_system = table.iter().filter(|entry| entry.device == own.device);
    same_file_system
        .filter_map(|entry| {
            let below = in_file_system.strip_prefix(&entry.root).ok()?;
            Some(entry.mount_point.join(below))
        })
        .filter(|place| place != path)
        .collect()
}

fn read() -> Result<Vec<Entry>> {
    let path = Path::new("/proc/self/mountinfo");
    let table = std::fs::read(path).context("cannot read", path)?;
    let lines = table.split(|&byte| byte == b'\n');
    Ok(lines.filter_map(parse).collect())
}

/// Reads a line as proc(5) describes it: number, parent, major:minor, root, mount point, options, optional fields,
/// a hyphen, type, source, super options.
fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?;
    let device = std::str::from_utf8(fields.nth(1)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let mount_point = unescape(fields.next()?);
    let mut fields = fields.skip_while(|&field| field != b"-");
    let file_system_type = fields.nth(1)?;
    let source = unescape(fields.next()?);
    Some(Entry {
        id: id.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: PathBuf::from(OsString::from_vec(root)),
        mount_point: PathBuf::from(OsString::from_vec(mount_point)),
        file_system_type: std::ffi::OsStr::from_bytes(file_system_type).to_owned(),
        source: PathBuf::from(OsString::from_vec(source)),
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
            br"36 35 98:7 /root /mnt/a\040b\134 rw,noatime shared:1 master:2 - fuse.warpfs /s\040rc ro";
        let entry = parse(line).unwrap();
        assert_eq!((entry.id, entry.device), (36, (98, 7)));
        assert_eq!(entry.root, Path::new("/root"));
        assert_eq!(entry.mount_point, Path::new(r"/mnt/a b\"));
        assert_eq!(entry.file_system_type, FILE_SYSTEM_TYPE);
        assert_eq!(entry.source, Path::new("/s rc"));
    }

    #[test]
    fn bind_mounts_lead_to_other_places() {
        let table: Vec<_> = [
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
            "2 1 8:1 /data /copy rw - ext4 /dev/sda1 rw",
            "3 1 8:1 /data/in/side /deep rw - ext4 /dev/sda1 rw",
            "4 1 8:2 / /data/other rw - ext4 /dev/sdb1 rw",
            "5 1 8:1 /database /base rw - ext4 /dev/sda1 rw",
        ]
        .iter()
        .filter_map(|line| parse(line.as_bytes()))
        .collect();
        let places = |path: &str| {
            let places = other_places_in(&table, Path::new(path)).into_iter();
            let texts = places.map(|place| place.to_str().unwrap().to_owned());
            texts.collect::<Vec<_>>()
        };
        assert_eq!(places("/data/in"), ["/copy/in"]);
        assert_eq!(places("/copy/in/side/x"), ["/data/in/side/x", "/deep/x"]);
        assert_eq!(places("/data/other/in"), [""; 0]);
        assert_eq!(places("/elsewhere"), [""; 0]);
    }

    #[test]
    fn a_mount_is_found_wherever_it_lies_and_whatever_lies_over_it() {
        let table = [
            "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
            "2 1 0:9 / /a rw - fuse.warpfs x ro",
            "3 1 0:9 /d /b rw - fuse.warpfs x ro",
            "4 1 0:7 / /a rw - tmpfs x rw",
            "5 1 0:8 / /a/c rw - tmpfs x rw",
        ];
        let table = table.iter().filter_map(|line| parse(line.as_bytes()));
        let table: Vec<_> = table.collect();
        let place = |path: &str, covered| Mounted {
            mount_point: path.into(),
            covered,
        };
        let found = |reached: &[u64]| {
            of_device_in(&table, (0, 9), |entry: &Entry| reached.contains(&entry.id))
        };
        let [a, b] = ["/a", "/b"];
        assert_eq!(found(&[3, 4]), [place(b, false), place(a, true)]);
        // One that was moved there, or put beneath.
        assert_eq!(found(&[2, 3]), [place(b, false), place(a, false)]);
        assert_eq!(found(&[4]), [place(b, true), place(a, true)]);
        // As far as the order of the lines tells.
        assert_eq!(found(&[2, 3, 4]), [place(b, false), place(a, true)]);
    }

    #[test]
    fn the_root_is_mounted_and_an_empty_directory_is_not() {
        assert!(topmost_at(Path::new("/")).unwrap().is_some());
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(topmost_at(directory.path()).unwrap(), None);
    }
}
