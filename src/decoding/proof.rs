//! What proves the whole of an archive, put together chunk by chunk in order: the checksum, and the record of digests if
//! that is to be proved too.

use super::decoder::Decoded;
use super::{Decoding, Sink, is_of_record};
use crate::archive::Archive;
use crate::digest::{Assembler, ChainingValue, Content, hashes_in_parallel};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Footer, GROUP_LEN};
use crate::record::Builder;

/// See the module's description.
pub(super) struct Proof {
    pub(super) checksum: Option<Assembler>,
    /// Whether the chunks' parts of the checksum are computed by who decodes them.
    pub(super) parallel: bool,
    pub(super) group_len: u64,
    pub(super) record: Option<Builder>,
    /// What is wrong with the record, where that was to be gone on behind.
    damaged_record: Option<Error>,
    pages: u64,
    /// Whether bytes go out before all is proved.
    pub(super) streams: bool,
}

impl Proof {
    pub(super) fn none() -> Self {
        Self {
            checksum: None,
            parallel: false,
            group_len: GROUP_LEN,
            record: None,
            damaged_record: None,
            pages: 0,
            streams: true,
        }
    }

    pub(super) fn new(job: &Decoding<'_>, sink: &Sink<'_>) -> Self {
        let table = job.archive.table();
        let starts = (0..table.len()).filter_map(|chunk| table.original_range(chunk));
        let layout = job.archive.record().map(|record| *record.layout());
        let group_len = layout
            .and_then(|layout| layout.group_len)
            .unwrap_or(GROUP_LEN);
        let parallel = job.digest.is_some_and(|footer| {
            hashes_in_parallel(footer.checksum, starts.map(|range| range.start))
        });
        let checksum = job
            .digest
            .map(|footer| Assembler::new(footer.checksum, parallel, group_len));
        Self {
            checksum,
            parallel,
            group_len,
            record: layout.filter(|_| job.proves_record).map(Builder::new),
            damaged_record: None,
            pages: 0,
            streams: matches!(sink, Sink::Stream(..)),
        }
    }

    /// Whether a chunk's bytes are needed when its turn comes.
    pub(super) fn needs_bytes(&self) -> bool {
        self.checksum.is_some() && !self.parallel
    }

    /// Adds the next chunk.
    pub(super) fn push(
        &mut self,
        job: &Decoding<'_>,
        decoded: &mut Decoded,
        content: Content<'_>,
    ) -> Result<()> {
        let mut groups = Vec::new();
        if let Some(assembler) = &mut self.checksum {
            match decoded.subtrees.take() {
                Some(subtrees) => assembler.push_subtrees(subtrees),
                None => assembler.push_content(content),
            }
            groups = assembler.take_groups();
        }
        let compared = match decoded.lost.first() {
            Some(unchecked) if self.record.is_some() => Err(unchecked.why.clone()),
            _ => self.compare_pages(job, decoded, groups),
        };
        match compared {
            Err(error) if job.keep_going && is_of_record(&error) => {
                self.record = None;
                self.damaged_record = Some(error);
                Ok(())
            }
            compared => compared,
        }
    }

    fn compare_pages(
        &mut self,
        job: &Decoding<'_>,
        decoded: &Decoded,
        groups: Vec<ChainingValue>,
    ) -> Result<()> {
        if let Some(builder) = &mut self.record {
            let chunk = job.archive.table().original_range(decoded.chunk);
            builder.push(chunk.unwrap_or_default(), &decoded.leaves, groups);
            while let Some(page) = builder.next_page() {
                compare_page(job.archive, &mut self.pages, &page)?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, job: &Decoding<'_>) -> Result<()> {
        let mut groups = Vec::new();
        if let Some((footer, assembler)) = job.digest.zip(self.checksum) {
            let (digest, last) = assembler.finish();
            compare(footer, &digest)?;
            groups = last;
        }
        if let Some(error) = self.damaged_record {
            return Err(error);
        }
        if let Some((record, builder)) = job.archive.record().zip(self.record) {
            let original_size = job.archive.table().original_size();
            let (pages, directory) = builder.finish(original_size, groups);
            for page in pages {
                compare_page(job.archive, &mut self.pages, &page)?;
            }
            if !record.has_directory(&directory) {
                return Err(ErrorKind::DamagedRecord("its directory").into());
            }
        }
        Ok(())
    }
}

fn compare_page(archive: &Archive, number: &mut u64, page: &[u8]) -> Result<()> {
    if let Some(record) = archive.record()
        && !archive.page_is(record, *number, page)?
    {
        return Err(ErrorKind::DamagedRecord("a page of it").into());
    }
    *number += 1;
    Ok(())
}

fn compare(footer: &Footer, computed: &[u8]) -> Result<()> {
    if footer.digest == computed {
        return Ok(());
    }
    Err(ErrorKind::ChecksumMismatch {
        checksum: footer.checksum,
        stored: hexadecimal(&footer.digest),
        computed: hexadecimal(computed),
    }
    .into())
}

/// A digest as people write it.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
