//! How much memory the process has used and how much it may still use.
//!
//! On Linux the figures come from `/proc` and from the control groups (v2 and v1) that containers
//! are limited by: inside a container the machine's memory says nothing. On macOS the peak comes
//! from `getrusage` and the total from `hw.memsize`.

#![cfg_attr(
    target_os = "macos",
    allow(unsafe_code, reason = "getrusage and sysctlbyname; every block says why it is sound")
)]

use std::path::{Path, PathBuf};

use crate::base::size::human_bytes;

/// Memory of the machine, or of the container if that is smaller. In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub total: u64,
    /// What can be taken without swapping: free memory and caches that the system gives up.
    pub available: u64,
}

/// The largest resident size this process has had, in bytes. Mapped files count as far as their
/// pages are in memory. `None` where the system does not tell.
#[must_use]
pub(crate) fn peak_resident_bytes() -> Option<u64> {
    platform::peak_resident_bytes()
}

/// The resident size now, in bytes. `None` where the system does not tell.
#[must_use]
pub(crate) fn resident_bytes() -> Option<u64> {
    platform::resident_bytes()
}

/// Gives memory that the allocator keeps for later back to the system. Worth a call after loading:
/// parsing a tokenizer takes several times what remains of it.
pub(crate) fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "an allocator call without a safe wrapper")]
    // SAFETY: malloc_trim only releases pages that hold no allocation; it may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes that can be taken without swapping; [`u64::MAX`] where the system does not tell.
#[must_use]
pub(crate) fn available_bytes() -> u64 {
    memory().map_or(u64::MAX, |memory| memory.available)
}

/// Memory of this machine or container. `None` where the system does not tell.
#[must_use]
pub(crate) fn memory() -> Option<Memory> {
    platform::memory()
}

/// Says that `bytes` more than now cannot be had, and `what` needs them (`factorizing
/// lm_head.weight`). `None` where they can, and where the system does not tell.
#[must_use]
pub(crate) fn shortage(bytes: u64, what: &str) -> Option<String> {
    memory().and_then(|memory| shortage_of(memory, bytes, what))
}

fn shortage_of(memory: Memory, bytes: u64, what: &str) -> Option<String> {
    (bytes > memory.available).then(|| {
        format!(
            "{what} needs {}, and {} of {} are available",
            human_bytes(bytes),
            human_bytes(memory.available),
            human_bytes(memory.total),
        )
    })
}

/// A suggestion from changes of a command and the bytes that each needs: those that fit into `limit`,
/// else the least of them.
#[must_use]
pub(crate) fn what_fits(changes: &[(String, u64)], limit: u64) -> String {
    let named = |(words, bytes): &(String, u64)| format!("{words} ({})", human_bytes(*bytes));
    let fitting: Vec<String> =
        changes.iter().filter(|(_, bytes)| *bytes <= limit).map(named).collect();
    if !fitting.is_empty() {
        return format!("What fits: {}", fitting.join("; or "));
    }
    let least = changes.iter().min_by_key(|(_, bytes)| *bytes).map(named);
    let least = least.map_or_else(String::new, |least| format!("; the least is {least}"));
    format!("No setting of this command fits{least}: use a machine with more memory")
}

/// The files that the figures are read from; the roots are arguments so that tests can bring their
/// own trees.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "read on Linux, tested anywhere"))]
mod linux {
    use super::{Memory, Path, PathBuf};

    /// `VmHWM:     123 kB` and the like, in bytes.
    pub(super) fn kilobytes_field(text: &str, field: &str) -> Option<u64> {
        text.lines().find_map(|line| {
            let value = line.strip_prefix(field)?.strip_prefix(':')?.trim();
            value.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        })
    }

    /// `proc` is `/proc`, `groups` is `/sys/fs/cgroup`.
    pub(super) fn memory(proc: &Path, groups: &Path) -> Option<Memory> {
        let info = std::fs::read_to_string(proc.join("meminfo")).ok()?;
        let mut memory = Memory {
            total: kilobytes_field(&info, "MemTotal")?,
            available: kilobytes_field(&info, "MemAvailable")?,
        };
        let membership = std::fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        for limit in limits(&membership, groups) {
            memory.total = memory.total.min(limit.total);
            memory.available = memory.available.min(limit.available);
        }
        Some(memory)
    }

    /// The limits of this process's memory control group and of all its ancestors.
    fn limits(membership: &str, groups: &Path) -> Vec<Memory> {
        let mut found = Vec::new();
        for line in membership.lines() {
            // hierarchy-id:controllers:path; version 2 is the line "0::path".
            let mut parts = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(path)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let relative = Path::new(path.trim_start_matches('/'));
            if id == "0" && controllers.is_empty() {
                found.extend(walk(groups, relative, &VERSION_2));
            } else if controllers.split(',').any(|controller| controller == "memory") {
                found.extend(walk(&groups.join("memory"), relative, &VERSION_1));
            }
        }
        found
    }

    struct Files {
        limit: &'static str,
        usage: &'static str,
        /// In `memory.stat`: file pages that are given up when somebody asks for memory.
        reclaimable: &'static str,
    }

    const VERSION_2: Files =
        Files { limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file" };
    const VERSION_1: Files = Files {
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file",
    };

    /// From the group up to the mount point. In a container without a namespace of its own the
    /// path is the host's and does not exist here; its own group is then the mount point itself.
    fn walk(mount: &Path, relative: &Path, files: &Files) -> Vec<Memory> {
        relative
            .ancestors()
            .map(
                |part| {
                    if part.as_os_str().is_empty() {
                        PathBuf::from(mount)
                    } else {
                        mount.join(part)
                    }
                },
            )
            .filter_map(|folder| limit_in(&folder, files))
            .collect()
    }

    fn limit_in(folder: &Path, files: &Files) -> Option<Memory> {
        let number = |name| -> Option<u64> {
            std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
        };
        // "max" in version 2 is no number, hence no limit.
        let total = number(files.limit)?;
        let usage = number(files.usage).unwrap_or(0);
        let statistics = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let reclaimable = statistics
            .lines()
            .find_map(|line| {
                line.strip_prefix(files.reclaimable)?.strip_prefix(' ')?.trim().parse().ok()
            })
            .unwrap_or(0_u64);
        Some(Memory { total, available: total.saturating_sub(usage.saturating_sub(reclaimable)) })
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use super::{Memory, Path, linux};

    fn status_field(field: &str) -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        linux::kilobytes_field(&text, field)
    }

    pub(super) fn peak_resident_bytes() -> Option<u64> {
        status_field("VmHWM")
    }

    pub(super) fn resident_bytes() -> Option<u64> {
        status_field("VmRSS")
    }

    pub(super) fn memory() -> Option<Memory> {
        linux::memory(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
    }
}

#[cfg(target_os = "macos")]
mod platform {
    use super::Memory;

    pub(super) fn peak_resident_bytes() -> Option<u64> {
        // SAFETY: an all-zero `rusage` is a valid value of this plain C struct.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live `rusage` that the call fills in.
        let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        // On macOS ru_maxrss is in bytes (on Linux it would be in kilobytes).
        (status == 0).then(|| u64::try_from(usage.ru_maxrss).ok()).flatten()
    }

    pub(super) fn resident_bytes() -> Option<u64> {
        None
    }

    pub(super) fn memory() -> Option<Memory> {
        let mut total = 0_u64;
        let mut length = size_of::<u64>();
        // SAFETY: the name ends in a zero byte, `total` is a live u64 of `length` bytes, which is
        // what hw.memsize writes, and nothing is set (null, 0).
        let status = unsafe {
            libc::sysctlbyname(
                c"hw.memsize".as_ptr(),
                (&raw mut total).cast(),
                &raw mut length,
                std::ptr::null_mut(),
                0,
            )
        };
        // macOS compresses and swaps before it refuses, and its count of free pages leaves out
        // most of what it would give: the total is the only bound that never refuses wrongly.
        (status == 0 && length == size_of::<u64>()).then_some(Memory { total, available: total })
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod platform {
    use super::Memory;

    pub(super) fn peak_resident_bytes() -> Option<u64> {
        None
    }

    pub(super) fn resident_bytes() -> Option<u64> {
        None
    }

    pub(super) fn memory() -> Option<Memory> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn read(files: &[(&str, &str)]) -> Option<Memory> {
        let folder = tree(files);
        linux::memory(&folder.path().join("proc"), &folder.path().join("cgroup"))
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\n",
    );

    #[test]
    fn without_groups_the_machine_counts() {
        assert_eq!(read(&[MEMINFO]), Some(Memory { total: 16 * MIB, available: 8 * MIB }));
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_version_2_limit_holds_also_on_an_ancestor() {
        let memory = read(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user/box\n"),
            ("cgroup/user/box/memory.max", "max\n"),
            ("cgroup/user/memory.max", "4194304\n"),
            ("cgroup/user/memory.current", "3145728\n"),
            ("cgroup/user/memory.stat", "anon 1\ninactive_file 1048576\nactive_file 7\n"),
        ]);
        assert_eq!(memory, Some(Memory { total: 4 * MIB, available: 2 * MIB }));
    }

    #[test]
    fn a_version_1_limit_of_a_container_that_shows_the_hosts_path() {
        let memory = read(&[
            MEMINFO,
            ("proc/self/cgroup", "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n"),
            ("cgroup/memory/memory.limit_in_bytes", "2097152\n"),
            ("cgroup/memory/memory.usage_in_bytes", "1048576\n"),
        ]);
        assert_eq!(memory, Some(Memory { total: 2 * MIB, available: MIB }));
    }

    #[test]
    fn a_version_1_group_without_limit_changes_nothing() {
        let memory = read(&[
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cgroup/memory/memory.usage_in_bytes", "1048576\n"),
        ]);
        assert_eq!(memory, Some(Memory { total: 16 * MIB, available: 8 * MIB }));
    }

    #[test]
    fn too_little_names_the_figures() {
        let memory = Memory { total: 4 << 30, available: 1 << 30 };
        assert_eq!(shortage_of(memory, 1 << 30, "a step"), None);
        assert_eq!(
            shortage_of(memory, 3 << 30, "factorizing lm_head.weight").unwrap(),
            "factorizing lm_head.weight needs 3.0 GB, and 1.0 GB of 4.0 GB are available"
        );
        if memory_is_known() {
            assert_eq!(shortage(0, "nothing"), None);
            assert!(shortage(u64::MAX, "everything").is_some());
        }
    }

    fn memory_is_known() -> bool {
        memory().is_some()
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn the_peak_follows_what_is_touched() {
        let before = peak_resident_bytes().unwrap();
        let size = 96 * MIB as usize;
        let block = vec![1_u8; size];
        let touched: u64 = block.iter().step_by(4096).map(|byte| u64::from(*byte)).sum();
        assert_eq!(touched, size as u64 / 4096);
        drop(block);
        let after = peak_resident_bytes().unwrap();
        assert!(after >= before, "a peak never falls");
        assert!(after >= size as u64, "{after} bytes after touching {size}");
        let now = memory().unwrap();
        assert!(available_bytes() > 0 && available_bytes() < u64::MAX);
        assert!(now.available <= now.total && now.total > after);
        if let Some(resident) = resident_bytes() {
            assert!(resident <= peak_resident_bytes().unwrap());
        }
    }
}
