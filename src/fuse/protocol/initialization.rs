//! How a server and the kernel agree on what they can do: the kernel's first request, and the answer.

use super::{Fields, REQUEST_HEADER};

/// The version of the protocol spoken here, as linux/fuse.h counts: 7.42 has io_uring.
const VERSION: (u32, u32) = (7, 42);

/// The oldest version that is spoken: of Linux 5.6, which openat2(2) came with.
const OLDEST: (u32, u32) = (7, 31);

/// What kernel and server may agree on; each is a bit of INIT's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fuse) struct Features(u64);

impl Features {
    /// Reads of one file may overtake each other.
    pub(in crate::fuse) const ASYNC_READ: Self = Self(1 << 0);
    /// The kernel drops a file's pages when it learns of another modification time.
    pub(in crate::fuse) const AUTO_INVAL_DATA: Self = Self(1 << 12);
    /// Listings bring attributes along.
    pub(in crate::fuse) const READDIRPLUS: Self = Self(1 << 13);
    /// Direct reads of one file may overtake each other.
    pub(in crate::fuse) const ASYNC_DIRECT_IO: Self = Self(1 << 15);
    /// Lookups and listings of one directory may overtake each other.
    pub(in crate::fuse) const PARALLEL_DIRECTORIES: Self = Self(1 << 18);
    /// The kernel enforces access control lists.
    pub(in crate::fuse) const POSIX_ACL: Self = Self(1 << 20);
    /// Requests may be longer than 128 KiB.
    pub(in crate::fuse) const MAX_PAGES: Self = Self(1 << 22);
    /// The kernel keeps links' targets.
    pub(in crate::fuse) const CACHE_SYMLINKS: Self = Self(1 << 23);
    /// There are more than 32 flags.
    const EXTENDED: Self = Self(1 << 30);
    /// Files may be read by the kernel itself.
    pub(in crate::fuse) const PASSTHROUGH: Self = Self(1 << 37);
    /// Requests may come through io_uring.
    pub(in crate::fuse) const IO_URING: Self = Self(1 << 41);

    pub(in crate::fuse) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(in crate::fuse) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn without_what_lacks(self, offered: Self) -> Self {
        Self(self.0 & offered.0)
    }
}

/// What the kernel says first.
#[derive(Debug)]
pub(in crate::fuse) struct Greeting {
    /// Its version of the protocol.
    pub(in crate::fuse) version: (u32, u32),
    /// What it can do.
    pub(in crate::fuse) offered: Features,
}

impl Greeting {
    /// Parses the first request, which came in one piece; `None` if it is another.
    pub(in crate::fuse) fn parse(message: &[u8]) -> Option<Self> {
        let mut fields = Fields(message.get(REQUEST_HEADER..)?);
        let version = (fields.u32()?, fields.u32()?);
        let _readahead = fields.u32()?;
        let first = u64::from(fields.u32()?);
        let offered = match Features(first).has(Features::EXTENDED) {
            true => first | u64::from(fields.u32()?) << 32,
            false => first,
        };
        Some(Self {
            version,
            offered: Features(offered),
        })
    }

    /// Whether the kernel's version can be spoken.
    pub(in crate::fuse) fn is_understood(&self) -> bool {
        self.version.0 == VERSION.0 && self.version.1 >= OLDEST.1
    }

    /// The answer: of what is `wanted`, as much as there is, with requests of at most `max_request` bytes, and at most
    /// `max_background` of those that nobody waits for under way at a time; and what is agreed on then.
    pub(in crate::fuse) fn answer(
        &self,
        wanted: Features,
        max_request: u32,
        max_background: u16,
    ) -> (Vec<u8>, Features) {
        let agreed = wanted
            .and(Features::EXTENDED)
            .without_what_lacks(self.offered);
        let mut answer = Vec::new();
        answer.extend(VERSION.0.to_ne_bytes());
        answer.extend(VERSION.1.to_ne_bytes());
        // What was set for the mount stays: this could only lower it.
        answer.extend(u32::MAX.to_ne_bytes());
        answer.extend((agreed.0 as u32).to_ne_bytes());
        answer.extend(max_background.to_ne_bytes());
        // From where on the kernel holds back what is not urgent.
        answer.extend((max_background - max_background / 4).to_ne_bytes());
        answer.extend(MAX_WRITE.to_ne_bytes());
        // Times are exact to a nanosecond.
        answer.extend(1_u32.to_ne_bytes());
        let max_pages = max_request as usize / rustix::param::page_size();
        let max_pages = u16::try_from(max_pages.max(1)).unwrap_or(u16::MAX);
        answer.extend(max_pages.to_ne_bytes());
        answer.extend(0_u16.to_ne_bytes());
        answer.extend(((agreed.0 >> 32) as u32).to_ne_bytes());
        // How many file systems may be stacked, this one included: files read by the kernel itself take one, which leaves
        // room for an overlay on top of the mount.
        let stacked = u32::from(agreed.has(Features::PASSTHROUGH));
        answer.extend(stacked.to_ne_bytes());
        answer.resize(ANSWER, 0);
        (answer, agreed)
    }
}

/// The length of the answer (`struct fuse_init_out`), in bytes.
const ANSWER: usize = 64;
/// The longest write, in bytes: there are none, but the kernel allows no less, and has room kept for it in every buffer.
const MAX_WRITE: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(minor: u32, flags: u32, more: u32) -> Vec<u8> {
        let mut message = vec![0; REQUEST_HEADER];
        for number in [7, minor, 131_072, flags, more] {
            message.extend(number.to_ne_bytes());
        }
        message.resize(REQUEST_HEADER + 64, 0);
        message
    }

    #[test]
    fn no_more_is_agreed_on_than_both_can_do() {
        let message = greeting(45, 1 << 30 | 1 << 13 | 1, 1 << 5);
        let greeting = Greeting::parse(&message).unwrap();
        assert!(greeting.is_understood());
        let wanted = Features::READDIRPLUS
            .and(Features::PASSTHROUGH)
            .and(Features::IO_URING);
        let (answer, agreed) = greeting.answer(wanted, 1 << 20, 64);
        assert_eq!(answer.len(), ANSWER);
        assert_eq!(answer[8..12], [0xff; 4], "the readahead is not lowered");
        assert!(agreed.has(Features::READDIRPLUS.and(Features::PASSTHROUGH)));
        assert!(!agreed.has(Features::IO_URING) && !agreed.has(Features::ASYNC_READ));
        assert_eq!(answer[12..16], (1_u32 << 30 | 1 << 13).to_ne_bytes());
        let pages = (1 << 20) / rustix::param::page_size();
        assert_eq!(answer[28..30], (pages as u16).to_ne_bytes());
        assert_eq!(answer[32..36], (1_u32 << 5).to_ne_bytes());
        assert_eq!(answer[36..40], 1_u32.to_ne_bytes());
    }

    #[test]
    fn flags_beyond_32_count_only_where_the_kernel_says_that_there_are_any() {
        let message = greeting(31, 1, u32::MAX);
        let greeting = Greeting::parse(&message).unwrap();
        assert!(greeting.is_understood());
        assert!(!greeting.offered.has(Features::IO_URING));
        assert!(
            !Greeting::parse(&self::greeting(30, 1, 0))
                .unwrap()
                .is_understood()
        );
        assert!(Greeting::parse(&message[..50]).is_none());
    }
}
