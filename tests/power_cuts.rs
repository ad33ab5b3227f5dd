//! When the power goes in the middle of a job, or right after it, what is on the disk is whole: no final name holds a
//! part, no input is gone without its output, and what a job has said to be done is there.
//!
//! `WARPFS_POWER_CUTS=100` cuts so many times, which takes a minute; without it, it is 22 times.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::Random;
use common::disks::Disk;
use common::jobs::{empty, jobs};

#[test]
fn what_is_on_the_disk_after_the_power_went_is_whole_and_nothing_is_lost() {
    let cuts = std::env::var("WARPFS_POWER_CUTS").map_or(22, |cuts| cuts.parse().unwrap());
    let Some(mut disk) = Disk::new(64 << 20) else {
        return;
    };
    let jobs = jobs(4 << 20);
    let mut random = Random(7);
    let mut durations = vec![Duration::ZERO; jobs.len()];
    let (mut amid, mut behind) = (0, 0);
    for number in 0..cuts + jobs.len() {
        let (job, round) = (&jobs[number % jobs.len()], number / jobs.len());
        let directory = disk.path("work");
        let _ = std::fs::create_dir(&directory);
        empty(&directory);
        job.prepare(&directory);
        common::shell(&directory, "sync -f .");
        let switch = disk.power_switch();
        let start = Instant::now();
        let mut child = job
            .command(&directory)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The first time, the power goes at the very end.
        let duration = &mut durations[number % jobs.len()];
        let done = match round {
            0 => {
                let status = child.wait().unwrap();
                *duration = start.elapsed();
                switch.off();
                assert!(status.success(), "{}", job.name());
                true
            }
            _ => {
                std::thread::sleep(duration.mul_f64(random.below(1000) as f64 / 1000.0));
                switch.off();
                child.wait().unwrap().success()
            }
        };
        disk.restart();
        let state = job.check(&directory, "after the power came back");
        if done {
            assert_eq!(state.outputs, job.files.len(), "{}", job.name());
        }
        *if done { &mut behind } else { &mut amid } += 1;
    }
    println!("{amid} cuts in the middle of a job, {behind} behind its end");
    assert!(amid > 0);
}
