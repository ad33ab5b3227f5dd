//! Sizes and ranges as people write them, and sizes and numbers as they are shown to people. There is one rule for both: K, M and G are
//! powers of 1024, and what is shown is called KiB, MiB and GiB, speeds too; it can be written so. What programs read (`--json`, `--chunks`, columns
//! of several files) is in bytes; the lines of `-v` are in bytes and MB/s, of 10^6 bytes.

use std::ops::Range;

/// A number of things, by their name.
pub(super) fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// Parses a size in bytes.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let text = match text.strip_suffix("iB") {
        Some(shorter) if shorter.ends_with(['K', 'M', 'G']) => shorter,
        _ => text,
    };
    let (digits, shift) = match text.char_indices().last() {
        Some((end, 'k' | 'K')) => (text.get(..end), 10),
        Some((end, 'm' | 'M')) => (text.get(..end), 20),
        Some((end, 'g' | 'G')) => (text.get(..end), 30),
        _ => (Some(text), 0),
    };
    let number: u64 = digits
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or("not a size: write bytes, or a number with K, M or G")?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "larger than any file".to_owned())
}

/// Parses a chunk size in bytes, within what `pack` takes.
pub(super) fn parse_chunk_size(text: &str) -> Result<u64, String> {
    let size = parse(text)?;
    let allowed = warpfs::pack::MIN_CHUNK_SIZE..=warpfs::pack::MAX_CHUNK_SIZE;
    match allowed.contains(&size) {
        true => Ok(size),
        false => Err("must be from 4K to 1G".to_owned()),
    }
}

/// Parses `START..END`, in bytes, END not included.
pub(super) fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text
        .split_once("..")
        .ok_or("not a range: write START..END, in bytes")?;
    let range = parse(start)?..parse(end)?;
    match range.start <= range.end {
        true => Ok(range),
        false => Err("ends before it starts".to_owned()),
    }
}

/// A size, or what is done in a second, for people; exact where it is small.
pub(super) fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// What part the packed size is of the original, in percent.
pub(super) fn percent(packed: u64, original: u64) -> String {
    match original {
        0 => "-".to_owned(),
        _ => format!("{:.1}%", packed as f64 * 100.0 / original as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_powers_of_1024_and_nothing_else() {
        assert_eq!(parse("0"), Ok(0));
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("4K"), Ok(4096));
        assert_eq!(parse("3m"), Ok(3 << 20));
        assert_eq!(parse("1G"), Ok(1 << 30));
        assert_eq!(parse("128KiB"), Ok(128 << 10));
        for wrong in [
            "",
            "K",
            "4KB",
            "4iB",
            "4kiB",
            "iB",
            "-1",
            "+1",
            "1.5M",
            "1T",
            "99999999999G",
            "4 K",
            "4\u{e9}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn chunk_sizes_have_bounds() {
        assert!(parse_chunk_size("4K").is_ok() && parse_chunk_size("1G").is_ok());
        assert!(parse_chunk_size("4095").is_err() && parse_chunk_size("1025M").is_err());
    }

    #[test]
    fn ranges_have_two_ends_in_order() {
        assert_eq!(parse_range("1K..2K"), Ok(1024..2048));
        assert_eq!(parse_range("7..7"), Ok(7..7));
        for wrong in ["5", "..5", "5..", "6..5", "1...2"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }
}
