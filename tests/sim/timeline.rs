//! What has happened in the seed that this thread runs, in order, and how it failed.
//!
//! A panic of a seed is its violation: its message and place are kept for the report instead of being printed.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static FOLDER: RefCell<String> = const { RefCell::new(String::new()) };
    static RUNS: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on lines do not show where the seed's folder is: each run has another.
pub fn hide(folder: &Path) {
    FOLDER.with_borrow_mut(|hidden| *hidden = folder.display().to_string());
}

/// Adds a line.
pub fn note(what: String) {
    let what = FOLDER.with_borrow(|folder| if folder.is_empty() { what } else { what.replace(folder, "…") });
    LINES.with_borrow_mut(|lines| lines.push(what));
}

/// All lines since the last call.
pub fn take() -> Vec<String> {
    LINES.with_borrow_mut(std::mem::take)
}

/// What `seed` returns, or what it panicked with and where.
pub fn caught<T>(seed: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNS.get() {
                PANIC.with_borrow_mut(|first| {
                    first.get_or_insert_with(|| info.to_string());
                });
            } else {
                others(info);
            }
        }));
    });
    RUNS.set(true);
    PANIC.take();
    let returned = catch_unwind(AssertUnwindSafe(seed));
    RUNS.set(false);
    returned.map_err(|_| PANIC.take().unwrap_or_else(|| "a panic without a message".into()))
}
