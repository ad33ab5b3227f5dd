//! Packing into a store. What is packed waits, compressed, in an unnamed temporary file until all of it is known; then it is
//! sent, and the object appears when all of it has arrived.

use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Stat};

use super::files::{check_stream_unchanged, is_packed};
use super::input::{Polled, bytes_left};
use super::spool::Unnamed;
use super::stream::pack_stream;
use super::{PackOptions, Summary};
use crate::archive::open_at_once;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::job::Control;
use crate::remote::{self, Upload};

/// What is to be packed.
pub(super) enum From<'a> {
    /// A file, or what can be read to its end under that name.
    Name(&'a Path),
    /// Standard input.
    Stream(&'a std::fs::File, &'a Stat),
}

/// Packs a file into the object that `output` names, if that is a URL.
///
/// # Errors
/// As [`super::pack_file`]; there is no object then, or what was there before.
pub(super) fn pack_to_store(
    input: &From<'_>,
    output: &Path,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Option<Summary>> {
    let Some((shown, store, key)) = remote::destination(output)? else {
        return Ok(None);
    };
    let refuse = |why: &str, path: &Path| Err(Error::unusable(why).in_file(path));
    if options.remove {
        let why = "--rm is for files that are packed beside their originals: leave it out";
        return refuse(why, &shown);
    }
    let opened;
    let found;
    let (file, stat, path) = match input {
        From::Stream(file, stat) => (*file, *stat, Path::new("standard input")),
        From::Name(path) => {
            opened = open_at_once(path)?;
            found = rustix::fs::fstat(&opened).context("cannot examine", path)?;
            match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => {
                    return refuse("is a directory: pack its files one by one", path);
                }
                FileType::RegularFile if !options.force && is_packed(&opened, &found, path)? => {
                    return refuse("is packed already; add --force to pack it once more", path);
                }
                _ => (&opened, &found, *path),
            }
        }
    };
    let upload = Upload::begin(&store, &key, options.force, control.cancelled);
    let mut upload = upload.context("cannot write", &shown)?;
    if !options.force {
        match store.head(&key) {
            Ok(_) => return Err(Error::new(ErrorKind::Exists).in_file(&shown)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("cannot examine", &shown),
        }
    }
    let aside = Unnamed(&shown);
    let size = bytes_left(file, stat);
    control.observer.begin(path, size);
    let sent = (|| {
        let packed = pack_stream(
            &mut Polled(file),
            size,
            path,
            &mut upload,
            &aside,
            options,
            control,
        )?;
        check_stream_unchanged(file, stat, path)?;
        match upload.complete() {
            Ok(()) => Ok(packed.summary),
            // It came while this was packed.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Error::new(ErrorKind::Exists).in_file(&shown))
            }
            Err(error) => Err(error).context("cannot write", &shown),
        }
    })();
    control.observer.end(path);
    match sent {
        Err(_) if control.cancelled.load(Ordering::Relaxed) => Err(ErrorKind::Cancelled.into()),
        sent => sent.map(Some),
    }
}
