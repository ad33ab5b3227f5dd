//! See `warpfs_fuzz::decode`.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use warpfs_fuzz::mutate;

fuzz_target!(|data: &[u8]| warpfs_fuzz::decode::run(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    warpfs_fuzz::mutate::in_place(data, size, max_size, seed, mutate::chunk, fuzzer_mutate)
});
