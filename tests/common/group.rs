//! Control groups of version 1.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A control group with a limit; removed with the test.
pub struct Group {
    pub path: PathBuf,
}

impl Group {
    /// One with so many bytes of memory. `None` where groups of version 1 cannot be made; then there is nothing to test here, and
    /// that is said.
    pub fn new(name: &str, limit: u64) -> Option<Self> {
        let group = Self::of("memory", "memory.limit_in_bytes", name)?;
        group.set("memory.limit_in_bytes", &limit.to_string());
        Some(group)
    }

    /// One whose processes can be given no more threads; `None` as above.
    pub fn of_threads(name: &str) -> Option<Self> {
        Self::of("pids", "pids.max", name)
    }

    /// Leaves them those that they have, and gives no more.
    pub fn give_no_threads(&self) {
        let has = fs::read_to_string(self.path.join("pids.current")).unwrap();
        self.set("pids.max", has.trim());
    }

    /// Gives them as many threads as they want.
    pub fn give_threads(&self) {
        self.set("pids.max", "max");
    }

    fn of(controller: &str, limit: &str, name: &str) -> Option<Self> {
        let path = Path::new("/sys/fs/cgroup")
            .join(controller)
            .join(format!("warpfs-{}-{name}", std::process::id()));
        if fs::create_dir(&path).is_err() || !path.join(limit).exists() {
            super::left_out(&format!(
                "no {controller} controller of version 1 can be written"
            ));
            let _ = fs::remove_dir(&path);
            return None;
        }
        Some(Self { path })
    }

    fn set(&self, limit: &str, value: &str) {
        fs::write(self.path.join(limit), value).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..200 {
            if fs::remove_dir(&self.path).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
