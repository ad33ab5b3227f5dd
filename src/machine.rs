//! What the machine, and the control groups the process is in, let it use.

/// What a machine is taken to have that does not say, in bytes.
const UNKNOWN_MEMORY: u64 = 4 << 30;

/// The memory this process may use, in bytes: the machine's, or the smallest limit of the control groups it is in.
pub(crate) fn usable_memory() -> u64 {
    let information = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = memory_of(&information).unwrap_or(UNKNOWN_MEMORY);
    let membership = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    cgroup_limit_files(&membership)
        .filter_map(|file| std::fs::read_to_string(file).ok())
        // "max" (version 2) is no number, and no limit in version 1 is a number near 2^63.
        .filter_map(|limit| limit.trim().parse::<u64>().ok())
        .fold(machine, u64::min)
}

/// The machine's memory in bytes, by the text of /proc/meminfo.
fn memory_of(information: &str) -> Option<u64> {
    let line = information
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// How many descriptors this process may have open at once.
#[cfg(feature = "files")]
pub(crate) fn usable_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// The files that may hold a memory limit, for the text of /proc/self/cgroup: of every group from the process' own
/// up to the root, because a limit anywhere above binds too. A container sees its own group as the root, so paths that
/// do not exist there are simply not found.
fn cgroup_limit_files(membership: &str) -> impl Iterator<Item = String> + '_ {
    membership.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next().unwrap_or_default();
        let group = fields.next().unwrap_or_default();
        let (roots, file): (&[&str], &str) = if controllers.is_empty() {
            (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (&["/sys/fs/cgroup/memory"], "memory.limit_in_bytes")
        } else {
            (&[], "")
        };
        roots.iter().flat_map(move |root| {
            std::path::Path::new(group)
                .ancestors()
                .map(move |group| format!("{root}{}/{file}", group.display()).replace("//", "/"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_every_group_above() {
        let text = "9:name=systemd:/\n4:memory:/a/b\n0::/c\n";
        let files: Vec<_> = cgroup_limit_files(text).collect();
        assert_eq!(
            files,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/c/memory.max",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/unified/c/memory.max",
                "/sys/fs/cgroup/unified/memory.max",
            ]
        );
    }

    #[test]
    fn the_machine_says_how_much_memory_it_has() {
        let text = "MemTotal:       24689292 kB\nMemFree:         1000000 kB\n";
        assert_eq!(memory_of(text), Some(24_689_292 << 10));
        assert_eq!(memory_of("MemTotal: many kB\n"), None);
        assert!(usable_memory() > 0);
    }
}
