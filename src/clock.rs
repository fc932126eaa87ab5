//! The only place that asks the machine for the time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment on the monotonic clock, for intervals and deadlines.
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since 1970, for people and for ages that outlive the process; never for order.
pub fn wall_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// The time since the machine was started, suspends included: [`now`] stands still while the machine
/// sleeps, and what others have done meanwhile would seem to be a moment ago. In steps of 10 ms. Where
/// the system has no such clock, the time since the first call, without suspends.
pub fn boot() -> Duration {
    /// Linux' own CLOCK_BOOTTIME as text. Kept open: it has to be read when no file can be opened, too.
    static UPTIME: OnceLock<Option<File>> = OnceLock::new();
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let mut text = [0; 64];
    let read = UPTIME.get_or_init(|| File::open("/proc/uptime").ok()).as_ref().and_then(|file| {
        let length = file.read_at(&mut text, 0).ok()?;
        uptime(str::from_utf8(&text[..length]).ok()?)
    });
    read.unwrap_or_else(|| FIRST.get_or_init(Instant::now).elapsed())
}

/// The first of the two numbers of seconds in `/proc/uptime`.
fn uptime(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.split_ascii_whitespace().next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_clock_runs() {
        assert_eq!(uptime("350735.47 234388.90\n"), Some(Duration::from_millis(350_735_470)));
        assert_eq!(uptime("x"), None);
        let before = boot();
        std::thread::sleep(Duration::from_millis(30));
        let passed = boot() - before;
        assert!((Duration::from_millis(10)..Duration::from_secs(10)).contains(&passed), "{passed:?}");
    }
}
