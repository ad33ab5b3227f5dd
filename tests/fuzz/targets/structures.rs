//! See `warpfs_fuzz::structures`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| warpfs_fuzz::structures::run(data));
