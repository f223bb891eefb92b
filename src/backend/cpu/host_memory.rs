//! How much memory the host can spare.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Where Linux shows control groups.
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes that can be had without swapping: `MemAvailable` of the kernel, which counts caches that it would give
/// up, or what the limits of the process's control group and of the groups around it leave, where that is less;
/// `None` where the kernel does not say.
pub(super) fn available_bytes() -> Option<u64> {
    let free = parse_available(&read_to_string("/proc/meminfo").ok()?)?;
    let group = read_to_string("/proc/self/cgroup").ok().and_then(|text| group_path(&text));
    let left = group.and_then(|group| left_in_groups(Path::new(GROUPS), &group));
    Some(left.map_or(free, |left| left.min(free)))
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The process's group in the unified hierarchy, relative to its root.
fn group_path(cgroups: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(path))
}

/// The least that `group` under `root`, or a group that it is in, may still take; `None` without any limit. In a
/// container the group's own path may not be visible, and the limit stands at the root.
fn left_in_groups(root: &Path, group: &Path) -> Option<u64> {
    let number = |folder: &Path, file: &str| -> Option<u64> {
        read_to_string(folder.join(file)).ok()?.trim().parse().ok()
    };
    let left = |group: &Path| {
        let folder = root.join(group);
        // A group without a limit has the word "max" there.
        let limit = number(&folder, "memory.max")?;
        Some(limit.saturating_sub(number(&folder, "memory.current")?) + reclaimable(&folder))
    };
    group.ancestors().filter_map(left).min()
}

/// Bytes of a group's page cache that the kernel gives up first.
fn reclaimable(folder: &Path) -> u64 {
    let statistics = read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let inactive = statistics.lines().find_map(|line| line.strip_prefix("inactive_file "));
    inactive.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_available_line_is_found_and_anything_else_is_not() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   20000001 kB\nBuffers: 1 kB\n";
        assert_eq!(parse_available(text), Some(20_000_001 * 1024));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: many kB\n"), None);
        assert_eq!(parse_available("MemAvailable: 18446744073709551615 kB\n"), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn the_group_is_that_of_the_unified_hierarchy() {
        let group = |text| group_path(text).map(|path| path.to_str().unwrap().to_owned());
        assert_eq!(group("4:memory:/old\n0::/a/b\n"), Some("a/b".to_owned()));
        assert_eq!(group("0::/\n"), Some(String::new()));
        assert_eq!(group("4:memory:/old\n"), None);
    }

    #[test]
    fn the_tightest_group_around_the_process_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |group: &str, file: &str, text: &str| {
            let folder = root.path().join(group);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(file), text).unwrap();
        };
        let left = |group: &str| left_in_groups(root.path(), Path::new(group));
        write("outer/inner", "memory.max", "max\n");
        write("outer/inner", "memory.current", "500\n");
        assert_eq!(left("outer/inner"), None);
        write("outer", "memory.max", "1000\n");
        write("outer", "memory.current", "700\n");
        assert_eq!(left("outer/inner"), Some(300));
        write("outer", "memory.stat", "active_file 50\ninactive_file 100\n");
        assert_eq!(left("outer/inner"), Some(400));
        write("outer/inner", "memory.max", "600\n");
        assert_eq!(left("outer/inner"), Some(100));
        // A group that has more than its limit, and one whose folder is not visible.
        write("outer/inner", "memory.current", "601\n");
        assert_eq!(left("outer/inner"), Some(0));
        write("", "memory.max", "50\n");
        write("", "memory.current", "20\n");
        assert_eq!(left("elsewhere/unseen"), Some(30));
    }
}
