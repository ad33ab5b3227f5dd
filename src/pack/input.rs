//! What is packed: a file of known size, read wherever it has data, or a stream, read to its end.
//!
//! Files are read with `pread`, never mapped: a file that shrinks while it is read is then an error, not a fault. Holes
//! are asked for and not read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Advice, AtFlags, FileType, Stat};
use rustix::io::Errno;

use super::PackOptions;
use super::choice::{SAMPLE_LEN, choose};
use super::chunks::{Encoder, Item, Load, Packed};
use crate::error::{ErrorKind, IoContext, Result};
use crate::format::{FixedHeader, Version};
use crate::job::{Control, thread_count, threads_for};
use crate::output::{Appender, NewFile};
use crate::place::{allocated, ask_anew};

/// How long a silent pipe is waited for before a look at whether to stop, in nanoseconds.
const POLL_INTERVAL: i64 = 100_000_000;

/// Packs a file of known size.
pub(super) fn pack_sized(
    file: &File,
    path: &Path,
    stat: Stat,
    new: &NewFile,
    options: &PackOptions,
    control: Control<'_>,
) -> Result<Packed> {
    let input = SizedInput::new(file, path, stat);
    let size = input.size();
    let choice = choose(options, Some(size), thread_count(None), || {
        let mut sample = vec![0; size.min(SAMPLE_LEN as u64) as usize];
        input.read(&(0..sample.len() as u64), &mut sample)?;
        Ok(sample)
    })
    .map_err(|error| error.in_file(path))?;
    let chunk_count = size.div_ceil(choice.chunk_size);
    let header = FixedHeader {
        version: Version::V2,
        codec: choice.codec,
        original_size: size,
        // The choice made sure that it fits.
        chunk_count: u32::try_from(chunk_count).unwrap_or(u32::MAX),
    };
    let mut offset = 0;
    let mut data = 0;
    let next = || {
        if offset >= size {
            return Ok(None);
        }
        let range = offset..size.min(offset + choice.chunk_size);
        if data < range.end && data <= offset {
            data = input.next_data(offset)?.unwrap_or(size);
        }
        offset = range.end;
        let load = match data >= range.end {
            true => Load::Hole,
            false => Load::Data,
        };
        Ok(Some(Item { range, load }))
    };
    let read = |range: &Range<u64>, buffer: &mut [u8]| input.read(range, buffer);
    let target = Appender::new(new.file(), header.payload_start());
    let encoder = Encoder::new(choice, options, path, control);
    let threads = threads_for(encoder.threads, chunk_count);
    let mut encoded = encoder.run(threads, next, read, target, new)?;
    input.check_unchanged()?;
    let mut output = new.file();
    output.rewind().context("cannot write", new.target())?;
    let beginning = encoded.write_beginning(&header, output, new.target())?;
    let ending = SeekFrom::Start(header.payload_start() + encoded.payload_len);
    output.seek(ending).context("cannot write", new.target())?;
    encoded.write_ending(&header, beginning, output, new.target())
}

/// A regular file of known size.
pub(crate) struct SizedInput<'a> {
    file: &'a File,
    path: &'a Path,
    before: Stat,
    /// Fewer blocks are in use than the size would take, so there are holes to be found.
    sparse: bool,
}

impl<'a> SizedInput<'a> {
    pub(crate) fn new(file: &'a File, path: &'a Path, before: Stat) -> Self {
        let size = u64::try_from(before.st_size).unwrap_or(0);
        // The advice speeds reading up where it is taken; nothing depends on it.
        let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
        Self {
            file,
            path,
            before,
            sparse: allocated(&before) < size,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        u64::try_from(self.before.st_size).unwrap_or(0)
    }

    /// Where there is data next, at `offset` or behind it; `None` if there is none up to the end.
    pub(crate) fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        if !self.sparse {
            return Ok(Some(offset));
        }
        match rustix::fs::seek(self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // Not every file system tells; then everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error).context("cannot look for holes in", self.path),
        }
    }

    fn next_hole(&self, offset: u64) -> Result<u64> {
        match rustix::fs::seek(self.file, rustix::fs::SeekFrom::Hole(offset)) {
            Ok(hole) => Ok(hole),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
            Err(error) => Err(error).context("cannot look for holes in", self.path),
        }
    }

    /// Reads the bytes of `range` into `buffer`, which has its length.
    pub(crate) fn read(&self, range: &Range<u64>, buffer: &mut [u8]) -> Result<()> {
        if !self.sparse {
            return self.read_data(range.start, buffer);
        }
        let mut offset = range.start;
        let mut rest = buffer;
        while !rest.is_empty() {
            let data = self.next_data(offset)?.unwrap_or(range.end);
            let data = data.clamp(offset, range.end);
            let (hole, behind) = rest.split_at_mut((data - offset) as usize);
            hole.fill(0);
            if behind.is_empty() {
                break;
            }
            let end = self.next_hole(data)?.clamp(data + 1, range.end);
            let (island, behind) = behind.split_at_mut((end - data) as usize);
            self.read_data(data, island)?;
            offset = end;
            rest = behind;
        }
        Ok(())
    }

    fn read_data(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    crate::Error::new(ErrorKind::InputChanged).in_file(self.path)
                }
                _ => crate::Error::io("cannot read", error).in_file(self.path),
            })
    }

    /// Checks that the file is as it was when it was opened.
    ///
    /// # Errors
    /// [`ErrorKind::InputChanged`] if it is not.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        check_unchanged(self.file, &self.before, self.path)
    }
}

/// Checks that a file is as it was `before`.
///
/// # Errors
/// [`ErrorKind::InputChanged`] if it is not.
pub(crate) fn check_unchanged(file: &File, before: &Stat, path: &Path) -> Result<()> {
    let now = ask_anew(file, c"", AtFlags::EMPTY_PATH).and_then(|()| rustix::fs::fstat(file));
    let now = now.context("cannot examine", path)?;
    if state(&now) != state(before) {
        return Err(crate::Error::new(ErrorKind::InputChanged).in_file(path));
    }
    Ok(())
}

/// What tells one state of a file from another.
fn state(stat: &Stat) -> impl PartialEq + use<> {
    (
        stat.st_size,
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
    )
}

/// How many bytes a file has left to be read; `None` of a stream, and of what is made up as it is read and says that it is empty.
pub(super) fn bytes_left(file: &File, stat: &Stat) -> Option<u64> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let size = u64::try_from(stat.st_size).ok()?;
    let left = size.checked_sub(rustix::fs::tell(file).ok()?)?;
    (left > 0).then_some(left)
}

/// A stream of which each read comes back within [`POLL_INTERVAL`], interrupted if there is nothing to read: who waits can then
/// be told to stop.
pub(super) struct Polled<'a>(pub(super) &'a File);

impl Read for Polled<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let interval = Timespec {
            tv_sec: 0,
            tv_nsec: POLL_INTERVAL,
        };
        let mut fds = [PollFd::new(self.0, PollFlags::IN)];
        match poll(&mut fds, Some(&interval))? {
            0 => Err(io::ErrorKind::Interrupted.into()),
            _ => match self.0.read(buffer) {
                // Somebody else may have read what there was.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Err(io::ErrorKind::Interrupted.into())
                }
                read => read,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zeros::is_zero;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn sparse_files_read_as_what_they_hold(
            islands in proptest::collection::vec((0_u64..2_000_000, 1_usize..20_000), 0..5),
            tail in 0_u64..300_000,
            reads in proptest::collection::vec((0_u64..2_300_000, 0_usize..500_000), 1..8),
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut model = Vec::new();
            for (offset, len) in islands {
                let end = offset as usize + len;
                model.resize(model.len().max(end), 0);
                model[offset as usize..end].fill(7);
                file.write_all_at(&vec![7; len], offset).unwrap();
            }
            model.resize(model.len() + tail as usize, 0);
            file.set_len(model.len() as u64).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            let input = SizedInput::new(&file, Path::new("sparse"), stat);
            for (offset, len) in reads {
                let start = (offset as usize).min(model.len());
                let end = (start + len).min(model.len());
                let mut buffer = vec![1; end - start];
                input.read(&(start as u64..end as u64), &mut buffer).unwrap();
                prop_assert!(buffer == model[start..end]);
                if input.next_data(start as u64).unwrap().is_none() {
                    prop_assert!(is_zero(&model[start..]));
                }
            }
        }
    }

    #[test]
    fn a_file_cut_short_while_it_is_read_has_changed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let input = SizedInput::new(&file, Path::new("x"), stat);
        file.set_len(50).unwrap();
        let error = input.read(&(0..100), &mut [0; 100]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InputChanged));
        assert!(matches!(
            input.check_unchanged().unwrap_err().kind(),
            ErrorKind::InputChanged
        ));
    }
}
