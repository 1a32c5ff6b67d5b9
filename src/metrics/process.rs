//! Reads what this process uses of the machine from `/proc` and its cgroup.
//!
//! Invariant: a file that is missing or has another form is no error: the value stays unknown.

use std::fs::{read_dir, read_to_string};

/// Memory and descriptors of this process; `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in RAM.
    pub(super) resident: Option<u64>,
    /// Bytes that it may use.
    pub(super) memory_limit: Option<u64>,
    /// Open descriptors.
    pub(super) open_fds: Option<u64>,
    /// Descriptors that it may open.
    pub(super) max_fds: Option<u64>,
}

impl Usage {
    /// Reads it now.
    pub fn read() -> Self {
        let file = |path: &str| read_to_string(path).unwrap_or_default();
        let of_machine = kilobytes(&file("/proc/meminfo"), "MemTotal:");
        let limits = cgroup_files(&file("/proc/self/cgroup"))
            .into_iter()
            .filter_map(|path| file(&path).trim().parse::<u64>().ok());
        Self {
            resident: kilobytes(&file("/proc/self/status"), "VmRSS:"),
            memory_limit: limits.chain(of_machine).min(),
            open_fds: read_dir("/proc/self/fd")
                .ok()
                .map(|open| open.count() as u64),
            max_fds: soft_limit(&file("/proc/self/limits"), "Max open files"),
        }
    }
}

/// The value of a line `NAME 123 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    number.checked_mul(1_024)
}

/// The soft limit of a line of `/proc/self/limits`.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Files that may hold the memory limit of the cgroups in `/proc/self/cgroup`: of version 2, and of version 1. In a
/// container the own cgroup is usually mounted as the root. A file that holds `max` has no limit.
fn cgroup_files(groups: &str) -> Vec<String> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let own = own.unwrap_or("").trim_end_matches('/');
    vec![
        format!("/sys/fs/cgroup{own}/memory.max"),
        "/sys/fs/cgroup/memory.max".to_owned(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_from_the_kernels_text() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(2 << 20));
        let limits = "Max cpu time   unlimited unlimited seconds\nMax open files            1024                 524288               files\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1_024));
        assert_eq!(soft_limit(limits, "Max cpu time"), None);
        assert_eq!(
            cgroup_files("1:cpu:/x\n0::/a/b\n")[0],
            "/sys/fs/cgroup/a/b/memory.max"
        );
        assert_eq!(cgroup_files("0::/\n")[0], "/sys/fs/cgroup/memory.max");
    }

    #[test]
    fn this_process_uses_less_than_it_may() {
        let usage = Usage::read();
        assert!(usage.resident > Some(1 << 20), "{usage:?}");
        assert!(usage.memory_limit > usage.resident, "{usage:?}");
        assert!(usage.open_fds > Some(2), "{usage:?}");
        assert!(usage.max_fds > usage.open_fds, "{usage:?}");
    }
}
