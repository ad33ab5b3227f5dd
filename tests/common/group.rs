//! Control groups of version 1.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A control group with a memory limit; removed with the test.
pub struct Group {
    pub path: PathBuf,
}

impl Group {
    /// `None` where groups of version 1 cannot be made; then there is nothing to test here, and that is said.
    pub fn new(name: &str, limit: u64) -> Option<Self> {
        let path = Path::new("/sys/fs/cgroup/memory")
            .join(format!("warpfs-{}-{name}", std::process::id()));
        if fs::create_dir(&path).is_err() || !path.join("memory.limit_in_bytes").exists() {
            super::left_out("no memory controller of version 1 can be written");
            let _ = fs::remove_dir(&path);
            return None;
        }
        fs::write(path.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
        Some(Self { path })
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
