//! What the process used: CPU time and peak memory, as the kernel tells them.

use std::time::Duration;

/// The kernel's unit of CPU time in /proc, in seconds: USER_HZ, 100 on every Linux.
const TICK: f64 = 0.01;

/// What was used in a span.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu: Duration,
    pub(super) peak_bytes: u64,
}

impl Usage {
    /// The beginning of a span; the peak memory begins anew.
    pub(super) fn begin() -> Usage {
        // Where this is not permitted the peak is that of the whole process.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Usage { cpu: cpu(), peak_bytes: 0 }
    }

    /// What was used since the beginning.
    pub(super) fn until_now(&self) -> Usage {
        Usage { cpu: cpu().saturating_sub(self.cpu), peak_bytes: peak() }
    }
}

/// User and system time; zero where there is no /proc.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may contain spaces; the numbers follow it: utime and stime are 14 and 15.
    let numbers = stat.rsplit_once(") ").map_or("", |(_, numbers)| numbers);
    let ticks: f64 = numbers.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Duration::from_secs_f64(ticks * TICK)
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
