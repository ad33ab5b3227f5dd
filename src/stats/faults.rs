//! What failed, by its kind: what a program that reads the mount was told, and why.

use serde::{Deserialize, Serialize};

use super::Counter;
use crate::error::{Error, ErrorKind};

macro_rules! faults {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The failures of one kind of request.
        #[derive(Debug, Default)]
        pub(crate) struct FaultCounters { $($name: Counter,)+ }

        /// The failures of one kind of request.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        #[non_exhaustive]
        pub struct FaultStats { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl FaultCounters {
            fn snapshot(&self) -> FaultStats {
                FaultStats { $($name: self.$name.get(),)+ }
            }
        }

        impl FaultStats {
            /// The failures since an earlier moment.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(earlier.$name),)+ }
            }

            /// The kinds by their names.
            pub fn by_kind(&self) -> [(&'static str, u64); [$(stringify!($name)),+].len()] {
                [$((stringify!($name), self.$name)),+]
            }
        }
    };
}

faults! {
    /// The file is damaged, cut short, or no `.warp` file.
    damage,
    /// The source changed under an open file. Of an open, the kernel tries again by itself.
    changed,
    /// It takes more memory than the budget has room for, or than there is.
    memory,
    /// The server has as many files open as it may.
    descriptors,
    /// The system said no: no such file, not allowed, a failing disk.
    system,
    /// Anything else.
    other,
}

impl FaultCounters {
    /// Counts a failure.
    pub(crate) fn add(&self, error: &Error) {
        let counter = match error.kind() {
            _ if error.is_damage() => &self.damage,
            ErrorKind::Changed | ErrorKind::InputChanged => &self.changed,
            ErrorKind::OverBudget { .. } | ErrorKind::NoMemory(_) => &self.memory,
            ErrorKind::TooManyOpen { .. } => &self.descriptors,
            ErrorKind::Io { .. } => &self.system,
            _ => &self.other,
        };
        counter.add(1);
    }
}

impl FaultStats {
    /// All kinds together.
    pub fn total(&self) -> u64 {
        let kinds = self.by_kind().into_iter();
        kinds.fold(0, |sum, (_, count)| sum.saturating_add(count))
    }
}

/// The failures of a mount.
#[derive(Debug, Default)]
pub(crate) struct ErrorCounters {
    pub(crate) read: FaultCounters,
    pub(crate) open: FaultCounters,
}

impl ErrorCounters {
    pub(super) fn snapshot(&self) -> ErrorStats {
        ErrorStats {
            read: self.read.snapshot(),
            open: self.open.snapshot(),
        }
    }
}

/// The failures of a mount, by what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ErrorStats {
    /// Reads that failed.
    pub read: FaultStats,
    /// Files that could not be opened.
    pub open: FaultStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_counted_by_its_kind() {
        let counters = FaultCounters::default();
        counters.add(&ErrorKind::NotWarp.into());
        counters.add(&ErrorKind::Changed.into());
        counters.add(&Error::io(
            "cannot read",
            std::io::Error::from_raw_os_error(5),
        ));
        counters.add(&ErrorKind::NoMemory("a table".to_owned()).into());
        counters.add(&ErrorKind::Panicked.into());
        let stats = counters.snapshot();
        let counted = [stats.damage, stats.changed, stats.memory, stats.system];
        assert_eq!((counted, stats.other, stats.total()), ([1; 4], 1, 5));
    }
}
