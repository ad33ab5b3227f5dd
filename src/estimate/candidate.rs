//! The files that samples can be taken of: where each has data, and how it is opened again without being led elsewhere.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, OFlags, Stat};

use crate::archive::open_regular;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::pack::{SizedInput, is_packed, open_entry};
use crate::place::{allocated, inode_of, open_beneath, open_directory};

/// The length of a sample, in bytes, where its file is not shorter: a multiple of all chunk sizes that are tried.
pub(super) const REGION_LEN: u64 = 1 << 20;
/// How many stretches of data a sparse file is seen to have; all behind the last of them is taken for data.
const MOST_RUNS: usize = 4096;

/// A file to be packed.
pub(super) struct Candidate {
    path: PathBuf,
    pub(super) size: u64,
    /// Which bytes have data, in whole regions.
    runs: Vec<Range<u64>>,
    /// The tree it is in, where it is copied if it does not shrink.
    tree: Option<Arc<Tree>>,
}

/// A tree that was gone through.
pub(super) struct Tree {
    root: PathBuf,
    inode: (u64, u64),
}

impl Tree {
    /// A tree whose root was found to be this.
    pub(super) fn new(root: &Path, stat: &Stat) -> Self {
        Self {
            root: root.to_owned(),
            inode: inode_of(stat),
        }
    }
}

impl Candidate {
    /// A file that was found; opened only if it may have holes.
    pub(super) fn new(
        path: &Path,
        stat: &Stat,
        tree: Option<Arc<Tree>>,
        open: impl FnOnce() -> Result<File>,
    ) -> Result<Self> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut runs = Vec::from_iter((size > 0).then_some(0..size));
        if allocated(stat) < size && size > REGION_LEN {
            runs = data_runs(&SizedInput::new(&open()?, path, *stat))?;
        }
        Ok(Self {
            path: path.to_owned(),
            size,
            runs,
            tree,
        })
    }

    /// It is to be packed no more.
    pub(super) fn give_up(&mut self) {
        self.size = 0;
        self.runs.clear();
    }

    /// Whether it is copied if it does not shrink.
    pub(super) fn is_in_tree(&self) -> bool {
        self.tree.is_some()
    }

    /// How much data it has, in whole regions, in bytes.
    pub(super) fn data(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Opens it, in a tree through no symbolic link below the root: what was done to the tree since it was gone through leads
    /// nowhere else.
    fn open(&self) -> Result<(File, Stat)> {
        let path = &self.path;
        let Some(tree) = &self.tree else {
            let file = open_regular(path)?;
            let stat = rustix::fs::fstat(&file).context("cannot examine", path)?;
            return Ok((file, stat));
        };
        let root = open_directory(CWD, &tree.root, OFlags::empty()).context("cannot open", path)?;
        let found = rustix::fs::fstat(&root).context("cannot examine", path)?;
        let below = path.strip_prefix(&tree.root).ok();
        match below.and_then(|below| Some((below.parent()?, below.file_name()?))) {
            Some((parent, name)) if inode_of(&found) == tree.inode => {
                let directory = open_beneath(&root, parent).context("cannot open", path)?;
                open_entry(directory, name, path)
            }
            _ => Err(Error::new(ErrorKind::InputChanged).in_file(path)),
        }
    }

    /// The region of `len` bytes, of which a whole region is a multiple, that holds the byte which so many bytes of data are in front
    /// of.
    pub(super) fn region_at(&self, mut position: u64, len: u64) -> Option<Range<u64>> {
        for run in &self.runs {
            let run_len = run.end - run.start;
            if position < run_len {
                let start = (run.start + position) / len * len;
                return Some(start..self.size.min(start + len));
            }
            position -= run_len;
        }
        None
    }

    /// Reads a region, and says whether the file is packed already.
    pub(super) fn read(&self, region: &Range<u64>) -> Result<(Vec<u8>, bool)> {
        let path = &self.path;
        let (file, stat) = self.open()?;
        // It may have grown, as logs do; but behind the end of a sparse one would be taken for a hole.
        if u64::try_from(stat.st_size).unwrap_or(0) < region.end {
            return Err(Error::new(ErrorKind::InputChanged).in_file(path));
        }
        let packed = is_packed(&file, &stat, path)?;
        let input = SizedInput::new(&file, path, stat);
        let mut bytes = vec![0; usize::try_from(region.end - region.start).unwrap_or(0)];
        input.read(region, &mut bytes)?;
        Ok((bytes, packed))
    }
}

/// Where a sparse file has data, in whole regions.
fn data_runs(input: &SizedInput<'_>) -> Result<Vec<Range<u64>>> {
    let size = input.size();
    let mut runs: Vec<Range<u64>> = Vec::new();
    let mut offset = 0;
    while let Some(data) = input.next_data(offset)?.filter(|&data| data < size) {
        let start = data / REGION_LEN * REGION_LEN;
        let end = match runs.len() < MOST_RUNS {
            true => size.min(start + REGION_LEN),
            false => size,
        };
        match runs.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => runs.push(start..end),
        }
        if end == size {
            break;
        }
        offset = end;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_directory_that_became_a_link_meanwhile_leads_nowhere() {
        let own = tempfile::tempdir().unwrap();
        let (root, outside) = (own.path().join("tree"), own.path().join("outside"));
        for directory in [&root.join("d"), &outside.join("d")] {
            fs::create_dir_all(directory).unwrap();
            fs::write(directory.join("x"), "x").unwrap();
        }
        let tree = Tree::new(&root, &rustix::fs::stat(&root).unwrap());
        let candidate = Candidate {
            path: root.join("d/x"),
            size: 1,
            runs: std::iter::once(0..1).collect(),
            tree: Some(Arc::new(tree)),
        };
        candidate.read(&(0..1)).unwrap();
        fs::remove_dir_all(root.join("d")).unwrap();
        std::os::unix::fs::symlink(outside.join("d"), root.join("d")).unwrap();
        assert!(candidate.read(&(0..1)).is_err());
        // Nor does another root in the place of the tree's.
        fs::rename(&root, own.path().join("aside")).unwrap();
        fs::rename(&outside, &root).unwrap();
        assert!(candidate.read(&(0..1)).is_err());
    }
}
