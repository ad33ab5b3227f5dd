//! Numbers, times and names as the report writes them: short, and of a bounded length.

use std::time::Duration;

/// What part one number is of another, in percent.
pub(super) fn part(of: u64, all: u64) -> String {
    match all {
        0 => "-".to_owned(),
        _ => format!("{:.0}%", of as f64 * 100.0 / all as f64),
    }
}

/// A short time with three digits.
pub(super) fn short(time: Duration) -> String {
    let nanoseconds = time.as_nanos() as f64;
    let (value, unit) = match nanoseconds {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "us"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let digits = match value {
        v if v < 10.0 && unit != "ns" => 2,
        v if v < 100.0 && unit != "ns" => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A long time.
pub(super) fn humantime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// The end of a long name, which is what tells it from others.
pub(super) fn ending(name: &str) -> String {
    const LONGEST: usize = 43;
    let length = name.chars().count();
    match length > LONGEST {
        false => name.to_owned(),
        true => {
            let end: String = name.chars().skip(length - LONGEST + 3).collect();
            format!("...{end}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (nanoseconds, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_500, "1.50 us"),
            (15_000, "15.0 us"),
            (150_000_000, "150 ms"),
            (61_000_000_000, "61.0 s"),
        ] {
            assert_eq!(short(Duration::from_nanos(nanoseconds)), expected);
        }
        assert_eq!(humantime(59), "59 s");
        assert_eq!(humantime(3_700), "1 h 1 min");
        assert_eq!(humantime(90_000), "1 d 1 h");
    }
}
