//! The record of digests of a file that is being packed, until all of it is known and it can be written behind the footer.
//!
//! It takes 0.075 % of the original, which for a large file is not little: beyond a few pages it is spooled to an unnamed
//! file.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::spool::{Aside, Spool};
use crate::digest::{ChainingValue, Leaf};
use crate::error::{IoContext, Result};
use crate::format::{Fingerprint, Layout, RECORD_MAGIC, TAIL_LEN, Tail};
use crate::record::Builder;

/// How much is kept in memory before it is spooled, in bytes.
const GATHERED_LEN: usize = 256 << 10;

/// See the module's description.
pub(super) struct Record {
    layout: Layout,
    builder: Builder,
    /// Pages that were not spooled yet.
    gathered: Vec<u8>,
    spool: Option<Spool>,
    directory: Vec<u8>,
}

impl Record {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            builder: Builder::new(layout),
            gathered: Vec::new(),
            spool: None,
            directory: Vec::new(),
        }
    }

    /// Adds the next chunk: which bytes of the original it holds, its leaves, and the groups that have become known with it.
    pub(super) fn push(
        &mut self,
        chunk: Range<u64>,
        leaves: &[Leaf],
        groups: Vec<ChainingValue>,
        aside: &dyn Aside,
    ) -> Result<()> {
        self.builder.push(chunk, leaves, groups);
        while let Some(page) = self.builder.next_page() {
            self.gather(&page, aside)?;
        }
        Ok(())
    }

    /// Adds the last groups; the original turned out to have so many bytes.
    pub(super) fn finish(
        &mut self,
        original_size: u64,
        groups: Vec<ChainingValue>,
        aside: &dyn Aside,
    ) -> Result<()> {
        let builder = std::mem::replace(&mut self.builder, Builder::new(self.layout));
        let (pages, directory) = builder.finish(original_size, groups);
        for page in pages {
            self.gather(&page, aside)?;
        }
        self.directory = directory;
        Ok(())
    }

    fn gather(&mut self, page: &[u8], aside: &dyn Aside) -> Result<()> {
        self.gathered.extend(page);
        if self.gathered.len() < GATHERED_LEN {
            return Ok(());
        }
        let mut spool = match self.spool.take() {
            Some(spool) => spool,
            None => Spool::new(aside)?,
        };
        spool
            .write_all(&self.gathered)
            .context("cannot write", aside.result())?;
        self.gathered.clear();
        self.spool = Some(spool);
        Ok(())
    }

    /// Writes the record to `output`, called `path` in messages; `beginning` is the fingerprint of header, table and footer. Says how
    /// long it is, in
    /// bytes.
    pub(super) fn write(
        mut self,
        mut output: impl Write,
        path: &Path,
        beginning: u64,
    ) -> Result<u64> {
        output
            .write_all(&RECORD_MAGIC)
            .context("cannot write", path)?;
        let mut pages_len = self.gathered.len() as u64;
        if let Some(spool) = self.spool {
            pages_len += spool.copy_to(&mut output, path)?;
        }
        let mut directory = Fingerprint::default();
        directory.update(&self.directory);
        let record_len = pages_len + (RECORD_MAGIC.len() + self.directory.len() + TAIL_LEN) as u64;
        let tail = Tail {
            layout: self.layout,
            record_len,
            beginning,
            directory: directory.digest(),
        };
        self.gathered.extend(&self.directory);
        self.gathered.extend(tail.to_bytes());
        output
            .write_all(&self.gathered)
            .context("cannot write", path)?;
        Ok(record_len)
    }
}
