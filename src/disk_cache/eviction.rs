//! Making room: how much may be taken, and what goes.
//!
//! Nothing is looked at for each entry that is put: after every eighth of a segment the directory is listed, some hundred
//! files at most, and as many of the oldest segments go as it takes. Less than the size is aimed at, by two segments: one is
//! for what other processes write between two looks, one for what is kept of a segment before it goes. Somebody else's disk is
//! not filled to the brim either: a sixty-fourth of it stays free.

use std::cmp::Reverse;
use std::io;
use std::sync::atomic::Ordering;

use super::segment::{self, Record};
use super::writer::Work;
use super::{Address, Files};

/// The part of the file system that is left free.
const LEFT_FREE: u64 = 64;
/// Of how many segments, given up one after the other, all that is in use is kept; of further ones half. There has to be an end,
/// also where everything is in use.
const KEPT_WHOLE: usize = 3;
/// The most entries of one segment that are looked at to be kept.
const MOST_KEPT: usize = 1 << 13;

/// Sees to it that so many bytes may be written. Says whether they may: not while another process makes room, or if there is
/// none.
pub(super) fn make_room(work: &mut Work, files: &Files, bytes: u64) -> io::Result<bool> {
    let step = (work.shared.segment_size() / 8).max(bytes);
    let unchecked = work.unchecked.saturating_add(bytes);
    if unchecked <= step {
        work.unchecked = unchecked;
        return Ok(true);
    }
    if !is_over(work, files, step)? {
        work.unchecked = bytes;
        return Ok(true);
    }
    let Some(_lock) = files.directory.lock()? else {
        return Ok(false);
    };
    // Another may have made room just now.
    let mut gone = 0;
    while is_over(work, files, step)? {
        if work.oldest == u64::MAX {
            return Ok(false);
        }
        evict(work, files, if gone < KEPT_WHOLE { 1 } else { 2 })?;
        gone += 1;
    }
    work.unchecked = bytes;
    Ok(true)
}

/// Gives the oldest segment up, and keeps nothing of it: the disk has no room, whatever the size.
pub(super) fn give_way(work: &mut Work, files: &Files) -> io::Result<()> {
    if let Some(_lock) = files.directory.lock()? {
        work.oldest = files.directory.list()?.oldest();
        if work.oldest != u64::MAX {
            evict(work, files, u64::MAX)?;
        }
    }
    Ok(())
}

/// Looks at what is there; says whether `bytes` more are too much.
fn is_over(work: &mut Work, files: &Files, bytes: u64) -> io::Result<bool> {
    let listing = files.directory.list()?;
    let shared = &work.shared;
    shared.newest.fetch_max(listing.newest(), Ordering::Relaxed);
    work.oldest = listing.oldest();
    let used = listing.used();
    let (available, whole) = files.directory.disk()?;
    let of_disk = (used + available).saturating_sub(whole / LEFT_FREE);
    let of_size = shared.size - 2 * shared.segment_size();
    Ok(used + bytes > of_size.min(of_disk))
}

/// Removes the oldest segment, and appends anew what was used lately of it, but no more than the given part.
fn evict(work: &mut Work, files: &Files, part: u64) -> io::Result<()> {
    let number = work.oldest;
    let own = work
        .appender
        .as_ref()
        .is_some_and(|own| own.number == number);
    if own {
        work.appender = None;
    } else {
        keep_used(work, files, number, part)?;
    }
    files.directory.remove_segment(number)?;
    work.shared.counters.disk_cache_evictions.add(1);
    Ok(())
}

/// Appends anew those entries of a segment that were used in the more recent half of the cache's history, the last used first, up
/// to the given part of the segment. Their last use stays what it was: to be kept another time they have to be used again.
fn keep_used(work: &mut Work, files: &Files, number: u64, part: u64) -> io::Result<()> {
    let Some(file) = files.directory.open_segment(number)? else {
        return Ok(());
    };
    let newest = work.shared.newest.load(Ordering::Relaxed);
    let middle = number + newest.saturating_sub(number) / 2;
    let use_of = |(position, address): (u32, Address)| {
        let entry = files.index.find(address.fingerprint()).ok()??;
        let here = (entry.segment, entry.position) == (number, position);
        (here && entry.used > middle).then_some((entry.used, position, address))
    };
    let mut used: Vec<_> = segment::scan(&file)?
        .filter_map(use_of)
        .take(MOST_KEPT)
        .collect();
    used.sort_by_key(|&(last, ..)| Reverse(last));
    let mut room = file.metadata()?.len() / part;
    for (last, position, address) in used {
        let length = address.record_length();
        // Put by a mount with more memory.
        if length > work.shared.longest {
            continue;
        }
        let Some(left) = room.checked_sub(length) else {
            break;
        };
        room = left;
        if let Some(mut record) = Record::read(&file, position, address)? {
            work.append(files, &mut record, Some(last))?;
        }
    }
    Ok(())
}
