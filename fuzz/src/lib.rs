//! The product's modules that read bytes from outside, compiled in place and instrumented: so neither
//! RocksDB nor librdkafka has to be built with coverage, which takes half an hour.
//!
//! M1: one allocation of more than [`LARGEST`] bytes ends the run: no input may make a reader take what it says
//!     for what it has.

#![allow(dead_code)]

use std::alloc::{GlobalAlloc, Layout, System};

#[path = "../../src"]
mod product {
    pub mod bookkeeping;
    pub mod cause;
    pub mod config;
    pub mod counts;
    pub mod entry;
    pub mod event;
    pub mod frontier;
    pub mod handler;
    pub mod json;
    pub mod marks;
    pub mod planted;
    pub mod proto;
    pub mod retry;
    pub mod stamp;
    pub mod topics;
    pub mod api {
        pub mod query;
    }
    pub mod instance {
        pub mod commit {
            pub mod mark;
        }
    }
    pub mod sequencer {
        pub mod format;
    }
    pub mod server {
        pub mod error;
    }
    pub mod store {
        pub mod schema;
    }
    pub mod task {
        pub mod done;
    }
}

pub use product::*;

/// What a handler that does not wait makes of one event, the first time or again as a dead letter's retry.
pub fn at_once(
    handler: &impl handler::Handler,
    event: event::Event,
    retry: u32,
) -> Result<handler::Outcome, handler::Failure> {
    let stamp = stamp::Stamp::root(0, 1);
    let (application, origin) = ("fuzz".into(), bytes::Bytes::new());
    let context = handler::Context { application, stamp, retry, attempt: 1, superseded: false, origin };
    let call = std::pin::pin!(handler.handle(event, context));
    match call.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

/// The largest allocation, in bytes: inputs are at most 64 KiB, and what is made of one may be some times as large.
pub const LARGEST: usize = 16 << 20;

struct Bounded;

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        check(size);
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn check(size: usize) {
    if size > LARGEST {
        eprintln!("M1: one allocation of {size} bytes");
        std::process::abort();
    }
}
