//! Which files were read most, in memory that does not grow with their number.
//!
//! Every open file counts for itself. When it is closed, its counts go into a table of so many names, by the algorithm
//! "space saving" (Metwally, Agrawal, El Abbadi 2005): where the table is full, the name with the fewest bytes makes room,
//! and the newcomer takes over its count, as an upper bound of what it may have had before. Whatever has more bytes than
//! the bytes of all divided by the table's size is in the table for sure.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Counter;

/// How many names are kept.
const KEPT: usize = 128;

/// What was read of an open file.
#[derive(Debug)]
pub(crate) struct Activity {
    path: Arc<Path>,
    reads: Counter,
    bytes: Counter,
}

impl Activity {
    /// Nothing yet of the file at `path`.
    pub(crate) fn new(path: Arc<Path>) -> Self {
        Self {
            path,
            reads: Counter::default(),
            bytes: Counter::default(),
        }
    }

    /// The file's name, for messages.
    #[cfg(feature = "fuse")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Counts a read.
    pub(crate) fn add(&self, bytes: u64) {
        self.reads.add(1);
        self.bytes.add(bytes);
    }
}

/// What was read of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct FileActivity {
    /// The file in the source, as the log names it.
    pub file: String,
    /// How many read requests it answered.
    pub reads: u64,
    /// How many bytes they were handed.
    pub bytes_read: u64,
    /// By how many bytes `bytes_read` may be too high: the file was forgotten meanwhile for want of room.
    pub uncertain_bytes: u64,
    /// How often it is open now.
    pub open: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(crate) struct Busiest(Mutex<HashMap<Arc<Path>, Count>>);

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    reads: u64,
    bytes: u64,
    uncertain: u64,
    open: u64,
}

impl Busiest {
    /// Takes over the counts of a file that is closed.
    pub(crate) fn close(&self, closed: &Activity) {
        let (reads, bytes) = (closed.reads.get(), closed.bytes.get());
        if reads == 0 {
            return;
        }
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut uncertain = 0;
        if table.len() >= KEPT && !table.contains_key(&closed.path) {
            let least = table.iter().min_by_key(|(_, count)| count.bytes);
            if let Some((name, count)) = least.map(|(name, count)| (Arc::clone(name), *count)) {
                uncertain = count.bytes;
                table.remove(&name);
            }
        }
        let count = table.entry(Arc::clone(&closed.path)).or_default();
        count.reads += reads;
        count.bytes += bytes + uncertain;
        count.uncertain += uncertain;
    }

    /// The `most` busiest of the closed and the open files, the busiest first.
    pub(crate) fn list<'a>(
        &self,
        open: impl Iterator<Item = &'a Activity>,
        most: usize,
    ) -> Vec<FileActivity> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = table.clone();
        drop(table);
        for activity in open {
            let reads = activity.reads.get();
            if reads > 0 {
                let count = all.entry(Arc::clone(&activity.path)).or_default();
                count.reads += reads;
                count.bytes += activity.bytes.get();
                count.open += 1;
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_unstable_by(|(a, x), (b, y)| (y.bytes, a).cmp(&(x.bytes, b)));
        all.truncate(most);
        all.into_iter()
            .map(|(path, count)| FileActivity {
                file: path.to_string_lossy().into_owned(),
                reads: count.reads,
                bytes_read: count.bytes,
                uncertain_bytes: count.uncertain,
                open: count.open,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(name: &str, bytes: u64) -> Activity {
        let activity = Activity::new(Path::new(name).into());
        activity.add(bytes);
        activity
    }

    #[test]
    fn open_and_closed_handles_of_a_file_count_together() {
        let busiest = Busiest::default();
        busiest.close(&activity("a", 10));
        busiest.close(&activity("b", 12));
        let open = [activity("a", 5), Activity::new(Path::new("idle").into())];
        let listed = busiest.list(open.iter(), 10);
        let a = FileActivity {
            file: "a".to_owned(),
            reads: 2,
            bytes_read: 15,
            uncertain_bytes: 0,
            open: 1,
        };
        assert_eq!(listed.len(), 2);
        assert_eq!(listed[0], a);
        assert_eq!(busiest.list(open.iter(), 1), [a]);
    }

    #[test]
    fn a_busy_file_stays_among_any_number_of_others_and_the_table_does_not_grow() {
        let busiest = Busiest::default();
        for round in 0..10_000 {
            busiest.close(&activity(&format!("once {round}"), 100));
            if round % 50 == 0 {
                busiest.close(&activity("often", 1000));
            }
        }
        let all = busiest.list(std::iter::empty(), usize::MAX);
        assert_eq!(all.len(), KEPT);
        let often = all.iter().find(|file| file.file == "often").unwrap();
        assert_eq!(all[0], *often);
        assert!(often.bytes_read >= 200_000);
        assert!(often.bytes_read - often.uncertain_bytes <= 200_000);
    }
}
