//! How the payload of one chunk holds its bytes.
//!
//! Versions 1 and 2 have one codec for a whole file. The layouts of other releases name a way for every chunk, and have some
//! ways more: see `docs/OLDER_FORMATS.md`.

use std::fmt;

use super::Codec;

/// How a chunk's payload holds its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As an LZ4 frame.
    Lz4,
    /// As Zstandard frames.
    Zstd,
    /// As a raw Snappy block.
    Snappy,
    /// As a raw Brotli stream.
    Brotli,
    /// As a bare LZ4 block, which does not say how long it decodes to.
    Lz4Block,
    /// As they are.
    Stored,
    /// Not at all: the payload is empty, and the chunk all zeros.
    Zeros,
}

impl Encoding {
    /// Every way there is.
    pub const ALL: [Encoding; 7] = [
        Encoding::Lz4,
        Encoding::Zstd,
        Encoding::Snappy,
        Encoding::Brotli,
        Encoding::Lz4Block,
        Encoding::Stored,
        Encoding::Zeros,
    ];

    /// Its name, as people and programs are shown it.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Lz4 => Codec::Lz4.name(),
            Encoding::Zstd => Codec::Zstd.name(),
            Encoding::Snappy => Codec::Snappy.name(),
            Encoding::Brotli => Codec::Brotli.name(),
            Encoding::Lz4Block => "lz4-block",
            Encoding::Stored => "stored",
            Encoding::Zeros => "zeros",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl From<Codec> for Encoding {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Lz4 => Encoding::Lz4,
            Codec::Zstd => Encoding::Zstd,
            Codec::Snappy => Encoding::Snappy,
            Codec::Brotli => Encoding::Brotli,
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The ways the chunks of a file are encoded in, shown as in "zstd+zeros".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Encodings(u8);

impl Encodings {
    /// Adds one.
    pub fn insert(&mut self, encoding: Encoding) {
        self.0 |= encoding.bit();
    }

    /// Whether it is among them.
    pub fn contains(self, encoding: Encoding) -> bool {
        self.0 & encoding.bit() != 0
    }

    /// Each of them once, in the order of [`Encoding::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Encoding> {
        Encoding::ALL
            .into_iter()
            .filter(move |&encoding| self.contains(encoding))
    }
}

impl<E: Into<Encoding>> From<E> for Encodings {
    fn from(encoding: E) -> Self {
        Self(encoding.into().bit())
    }
}

impl fmt::Display for Encodings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.pad("none");
        }
        let names: Vec<_> = self.iter().map(Encoding::name).collect();
        f.pad(&names.join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_comes_out_once_and_is_shown_in_order() {
        let mut encodings = Encodings::default();
        assert_eq!(encodings.to_string(), "none");
        for encoding in [Encoding::Zeros, Encoding::Zstd, Encoding::Zeros] {
            encodings.insert(encoding);
            assert!(encodings.contains(encoding));
        }
        assert_eq!(encodings.iter().count(), 2);
        assert!(!encodings.contains(Encoding::Stored));
        assert_eq!(format!("{encodings:<12}|"), "zstd+zeros  |");
        assert_eq!(Encodings::from(Codec::Lz4).to_string(), "lz4");
    }
}
