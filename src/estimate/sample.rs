//! The samples: which bytes of which files, and what they stand for.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::FileType;

use super::candidate::{Candidate, REGION_LEN, Tree};
use super::measure::Costs;
use super::{is_tree, settings_at};
use crate::archive::open_regular;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::format::Codec;
use crate::job::Control;
use crate::pack::{DEFAULT_ZSTD_LEVEL, SAMPLE_LEN, open_entry, smaller_of_two};
use crate::place::inode_of;
use crate::walk::{Step, Walk};

/// How much is sampled at most, in bytes: so much is held in memory.
const MOST_BYTES: u64 = 48 << 20;
/// How many samples there are at most, of small files.
const MOST_SAMPLES: usize = 4096;
/// How long samples are read.
const TIME: Duration = Duration::from_millis(1500);
/// One sample.
pub(super) struct Sample {
    pub(super) bytes: Vec<u8>,
    /// Where it begins in its file, in bytes.
    pub(super) offset: u64,
    /// The size of its file, in bytes.
    pub(super) file_size: u64,
    file: usize,
    /// How much it stands for, beside the others.
    weight: f64,
    /// It is copied and not packed, whatever comes out.
    copied: bool,
}

/// See the module's description.
pub(super) struct Samples {
    files: Vec<Candidate>,
    samples: Vec<Sample>,
    failed: u64,
    /// By how much all of it packs worse than the samples do.
    scale: f64,
}

impl Samples {
    /// Looks at these files and trees, and reads the samples.
    pub(super) fn take<'a>(
        paths: impl Iterator<Item = &'a Path>,
        control: Control<'_>,
    ) -> Result<Self> {
        let mut taken = Self {
            files: Vec::new(),
            samples: Vec::new(),
            failed: 0,
            scale: 1.0,
        };
        let mut seen = HashSet::new();
        for path in paths {
            if !is_tree(path) {
                let file = open_regular(path)?;
                let stat = rustix::fs::fstat(&file).context("cannot examine", path)?;
                taken
                    .files
                    .push(Candidate::new(path, &stat, None, || Ok(file))?);
                continue;
            }
            let mut tree = None;
            for step in Walk::new(path, None) {
                if control.cancelled.load(Ordering::Relaxed) {
                    return Err(ErrorKind::Cancelled.into());
                }
                let found = match step {
                    Ok(Step::Other(entry)) if entry.kind() == FileType::RegularFile => {
                        let first = entry.stat.st_nlink == 1 || seen.insert(inode_of(&entry.stat));
                        if !first || entry.stat.st_size == 0 {
                            continue;
                        }
                        let open = || open_entry(&*entry.directory, &entry.name, &entry.path);
                        Candidate::new(&entry.path, &entry.stat, tree.clone(), || Ok(open()?.0))
                    }
                    Ok(Step::Enter(root)) if tree.is_none() => {
                        tree = Some(Arc::new(Tree::new(path, &root.stat)));
                        continue;
                    }
                    Ok(_) => continue,
                    Err(error) => Err(error),
                };
                taken.keep(found, control);
            }
        }
        taken.files.retain(|file| file.size > 0);
        taken.read(control)?;
        let mut files = taken.files.iter().filter(|file| file.size > 0);
        if taken.samples.is_empty() && files.all(|file| file.data() > 0) {
            return Err(Error::unusable(match taken.failed {
                0 => "there is nothing to be packed here",
                _ => "nothing here can be read",
            }));
        }
        Ok(taken)
    }

    fn keep(&mut self, found: Result<Candidate>, control: Control<'_>) {
        match found {
            Ok(candidate) => self.files.push(candidate),
            Err(error) => self.fail(&error, control),
        }
    }

    fn fail(&mut self, error: &Error, control: Control<'_>) {
        self.failed += 1;
        control.observer.failed(error);
    }

    fn read(&mut self, control: Control<'_>) -> Result<()> {
        let started = Instant::now();
        let mut given_up: HashSet<usize> = HashSet::new();
        let mut ends = self.ends(&given_up);
        let total = ends.last().copied().unwrap_or(0);
        let everything = total <= MOST_BYTES && self.files.len() <= MOST_SAMPLES;
        let mut taken: HashMap<(usize, u64), usize> = HashMap::new();
        let mut bytes = 0;
        let mut position = 0;
        for turn in 0..2 * MOST_SAMPLES as u64 {
            if control.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled.into());
            }
            let total = ends.last().copied().unwrap_or(0);
            if total == 0 || bytes >= MOST_BYTES || self.samples.len() >= MOST_SAMPLES {
                break;
            }
            if started.elapsed() > TIME && bytes >= 8 * REGION_LEN {
                break;
            }
            if !everything {
                position = spread(turn, total);
            } else if position >= total {
                break;
            }
            let file = ends.partition_point(|&end| end <= position);
            let Some((candidate, &end)) = self.files.get(file).zip(ends.get(file)) else {
                break;
            };
            if given_up.contains(&file) {
                // The turns of a large one are the others' from here on; that of a small one hardly comes again.
                match everything {
                    true => position = end,
                    false => ends = self.ends(&given_up),
                }
                continue;
            }
            let begin = end - candidate.data();
            let Some(region) = candidate.region_at(position - begin, REGION_LEN) else {
                break;
            };
            let len = region.end - region.start;
            if everything {
                position += len;
            }
            if let Some(&again) = taken.get(&(file, region.start)) {
                if let Some(sample) = self.samples.get_mut(again) {
                    sample.weight += 1.0;
                }
                continue;
            }
            match candidate.read(&region) {
                Ok((data, copied)) => {
                    bytes += len;
                    taken.insert((file, region.start), self.samples.len());
                    self.samples.push(Sample {
                        bytes: data,
                        offset: region.start,
                        file_size: candidate.size,
                        file,
                        weight: if everything { len as f64 } else { 1.0 },
                        copied: copied && candidate.is_in_tree(),
                    });
                }
                Err(error) => {
                    self.fail(&error, control);
                    given_up.insert(file);
                }
            }
        }
        // What cannot be read is not packed either.
        let read: HashSet<usize> = self.samples.iter().map(|sample| sample.file).collect();
        for &file in given_up.difference(&read) {
            if let Some(candidate) = self.files.get_mut(file) {
                candidate.give_up();
            }
        }
        Ok(())
    }

    /// Where each file's data ends, all data laid end to end but that of files given up.
    fn ends(&self, given_up: &HashSet<usize>) -> Vec<u64> {
        let mut total = 0;
        let files = self.files.iter().enumerate();
        files
            .map(|(number, file)| {
                if !given_up.contains(&number) {
                    total += file.data();
                }
                total
            })
            .collect()
    }

    /// The size of the largest file, in bytes.
    pub(super) fn largest(&self) -> u64 {
        self.files.iter().map(|file| file.size).max().unwrap_or(0)
    }

    /// A short piece of all the data, an even share of it for every turn, of at most `len` bytes. `None` if it
    /// cannot be read: what that is was told when samples were taken.
    pub(super) fn piece(&self, turn: u64, len: u64) -> Option<Sample> {
        let mut position = spread(turn, self.files.iter().map(Candidate::data).sum());
        let mut files = self.files.iter().enumerate();
        let (number, candidate) = files.find(|(_, file)| match file.data() {
            data if position < data => true,
            data => {
                position -= data;
                false
            }
        })?;
        let region = candidate.region_at(position, len)?;
        let (bytes, copied) = candidate.read(&region).ok()?;
        Some(Sample {
            bytes,
            offset: region.start,
            file_size: candidate.size,
            file: number,
            weight: 1.0,
            copied,
        })
    }

    /// Whether not all of the data is in the samples.
    pub(super) fn are_a_part(&self) -> bool {
        self.sampled() < self.files.iter().map(Candidate::data).sum()
    }

    /// Has everything packed for what pieces of all the data come to, `cost` bytes for each of theirs, by the setting by which the
    /// samples have these costs.
    pub(super) fn scale_to(&mut self, cost: f64, costs: &Costs) {
        let mut sum = 0.0;
        let mut weights = 0.0;
        for (sample, cost) in self.samples.iter().zip(&costs.samples) {
            sum += cost.unwrap_or(0.0) / sample.bytes.len().max(1) as f64 * sample.weight;
            weights += sample.weight;
        }
        if sum > 0.0 {
            self.scale = cost / (sum / weights);
        }
    }

    pub(super) fn all(&self) -> &[Sample] {
        &self.samples
    }

    /// The samples' numbers, from what compresses best to what does worst.
    pub(super) fn ranks(&self, costs: &Costs) -> Vec<usize> {
        let part = |number: &usize| {
            let len = self
                .samples
                .get(*number)
                .map_or(1, |sample| sample.bytes.len());
            let cost = costs.samples.get(*number).copied().flatten();
            cost.unwrap_or(0.0) / len as f64
        };
        let mut ranks: Vec<usize> = (0..self.samples.len()).collect();
        ranks.sort_by(|one, other| part(one).total_cmp(&part(other)));
        ranks
    }

    pub(super) fn files(&self) -> u64 {
        self.files.iter().filter(|file| file.size > 0).count() as u64
    }

    pub(super) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    pub(super) fn sampled(&self) -> u64 {
        self.samples
            .iter()
            .map(|sample| sample.bytes.len() as u64)
            .sum()
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// The size of everything packed, in bytes, where the samples come to so much.
    pub(super) fn packed_size(&self, costs: &Costs) -> u64 {
        let by_file = self.by_file(costs);
        let mut packed = 0.0;
        let mut weights = 0.0;
        for (sample, cost) in self.samples.iter().zip(&costs.samples) {
            let shrinks = by_file
                .get(&sample.file)
                .is_none_or(|(cost, size)| cost < size);
            let file = self.files.get(sample.file);
            let in_tree = file.is_some_and(|file| file.is_in_tree());
            let part = match sample.copied || (in_tree && !shrinks) {
                true => 1.0,
                false => cost.unwrap_or(0.0) / sample.bytes.len().max(1) as f64,
            };
            packed += part * sample.weight;
            weights += sample.weight;
        }
        let data: u64 = self.files.iter().map(Candidate::data).sum();
        let holes = self.size() - data;
        let of_data = if weights > 0.0 { packed / weights } else { 0.0 };
        // What does not shrink does not grow either.
        let of_data = (of_data * self.scale).min(of_data.max(1.0));
        (of_data * data as f64 + costs.of_a_hole * holes as f64) as u64
    }

    /// What auto would have: of every file the costs of Zstandard or of Snappy, as its beginning decides; and whether that is
    /// Zstandard for most of the data.
    pub(super) fn auto(
        &self,
        zstd: &Costs,
        snappy: &Costs,
        control: Control<'_>,
    ) -> Result<(Costs, bool)> {
        let mut choices: HashMap<usize, Codec> = HashMap::new();
        let mut zstds = 0.0;
        let mut snappies = 0.0;
        let mut samples = Vec::new();
        let both = zstd.samples.iter().zip(&snappy.samples);
        for (sample, (zstd, snappy)) in self.samples.iter().zip(both) {
            if control.cancelled.load(Ordering::Relaxed) {
                return Err(ErrorKind::Cancelled.into());
            }
            let choice = match choices.entry(sample.file) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => *new.insert(self.choice(sample.file)?),
            };
            let is_zstd = choice == Codec::Zstd;
            *(if is_zstd { &mut zstds } else { &mut snappies }) += sample.weight;
            samples.push(if is_zstd { *zstd } else { *snappy });
        }
        let costs = Costs {
            samples,
            of_a_hole: zstd.of_a_hole,
        };
        Ok((costs, zstds >= snappies))
    }

    /// What auto would take for a file.
    fn choice(&self, file: usize) -> Result<Codec> {
        let mut samples = self.samples.iter();
        let sampled = samples.find(|sample| (sample.file, sample.offset) == (file, 0));
        let read = || {
            let candidate = self.files.get(file)?;
            candidate
                .read(&(0..candidate.size.min(SAMPLE_LEN as u64)))
                .ok()
        };
        let beginning = match sampled {
            Some(sample) => Some(Cow::from(&sample.bytes)),
            None => read().map(|(bytes, _)| Cow::from(bytes)),
        };
        // A moment ago it could be read, or there were no samples of it.
        let Some(beginning) = beginning else {
            return Ok(Codec::Zstd);
        };
        smaller_of_two(&beginning, &settings_at(DEFAULT_ZSTD_LEVEL))
    }

    /// What the samples of each file come to, and their size, in bytes.
    fn by_file(&self, costs: &Costs) -> HashMap<usize, (f64, f64)> {
        let mut files: HashMap<usize, (f64, f64)> = HashMap::new();
        for (sample, cost) in self.samples.iter().zip(&costs.samples) {
            let (costs, size) = files.entry(sample.file).or_default();
            *costs += cost.unwrap_or(0.0);
            *size += sample.bytes.len() as f64;
        }
        files
    }
}

/// A number below `end` for every turn: however many there have been, they lie evenly. These are the fractions of multiples of
/// the golden ratio.
pub(super) fn spread(turn: u64, end: u64) -> u64 {
    let fraction = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(fraction) * u128::from(end)) >> 64) as u64
}
