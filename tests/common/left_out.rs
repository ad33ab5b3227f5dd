//! Where tests say that the machine does not allow them; beside the tests that cross rooms, the library's own do.

use std::fs::File;
use std::io::Write;

/// Says that a test, or a part of it, is left out, and why: here, and in the list that `scripts/test` shows at its end.
pub fn left_out(why: &str) {
    let test = std::thread::current();
    let line = format!("{}: {why}", test.name().unwrap_or("a test"));
    eprintln!("left out: {line}");
    if let Some(list) = std::env::var_os("WARPFS_LEFT_OUT") {
        let mut list = File::options().append(true).open(list).unwrap();
        writeln!(list, "{line}").unwrap();
    }
}
