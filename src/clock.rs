//! The only place that asks the machine for the time.

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
