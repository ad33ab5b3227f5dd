//! See `warpfs_fuzz::differential`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| warpfs_fuzz::differential::run(data));
