//! The only place that asks the machine for the time, and that waits for it to pass.
//!
//! A simulation puts its thread under a clock of its own ([`simulate`]), which moves only when somebody waits.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where simulated time begins: milliseconds since 1970, the same in every run.
const BEGINNING_MS: i64 = 1_700_000_000_000;

thread_local! {
    /// How far a simulation has come, on the threads that are in one.
    static SIMULATED: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// From now on this thread's time begins anew and stands still but for [`sleep`]; `false` = it is the machine's again.
pub fn simulate(simulated: bool) {
    SIMULATED.set(simulated.then_some(Duration::ZERO));
}

/// Whether nothing happens while this thread waits.
pub fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

/// Waits.
pub fn sleep(pause: Duration) {
    match SIMULATED.get() {
        Some(passed) => SIMULATED.set(Some(passed + pause)),
        None => std::thread::sleep(pause),
    }
}

/// A moment on the monotonic clock, for intervals and deadlines.
pub fn now() -> Instant {
    /// Where simulated moments are counted from: there is no other way to have one.
    static START: OnceLock<Instant> = OnceLock::new();
    match SIMULATED.get() {
        Some(passed) => *START.get_or_init(Instant::now) + passed,
        None => Instant::now(),
    }
}

/// How long ago `moment` was.
pub fn since(moment: Instant) -> Duration {
    now().saturating_duration_since(moment)
}

/// Milliseconds since 1970, for people and for ages that outlive the process; never for order.
pub fn wall_ms() -> i64 {
    if let Some(passed) = SIMULATED.get() {
        return BEGINNING_MS + i64::try_from(passed.as_millis()).unwrap_or(i64::MAX - BEGINNING_MS);
    }
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
    if let Some(passed) = SIMULATED.get() {
        return passed;
    }
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
    fn simulated_time_moves_by_waiting_alone() {
        simulate(true);
        let (began, wall, boot_at) = (now(), wall_ms(), boot());
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!((now(), wall_ms(), boot()), (began, wall, boot_at));
        let hour = Duration::from_secs(3600);
        sleep(hour);
        assert_eq!((since(began), wall_ms() - wall, boot() - boot_at), (hour, 3_600_000, hour));
        simulate(false);
        assert!(now() < began + hour && wall_ms() > wall + 3_600_000);
    }

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
