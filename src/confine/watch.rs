//! Memory, stack and time of one thread, seen from its allocations and from outside.

#![allow(
    unsafe_code,
    reason = "an allocator is unsafe by its nature; every block says why it is sound"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Why a thread was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Memory = 1,
    Stack = 2,
}

/// What the watched thread and the one that waits for it share.
#[derive(Debug)]
pub(super) struct Watch {
    stop: AtomicU8,
    clock: OnceLock<Clock>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { stop: AtomicU8::new(0), clock: OnceLock::new() }
    }

    /// Watches the current thread, which has just begun, until the value is dropped.
    pub(super) fn enter(&self, memory: usize, stack: usize) -> Watched<'_> {
        if let Some(clock) = Clock::of_this_thread() {
            // Set once: a watch has one thread.
            let _ = self.clock.set(clock);
        }
        // The system's calls and the way to here need a part of it.
        let usable = stack - stack / 8;
        LOCAL.with(|local| {
            local.left.set(isize::try_from(memory).unwrap_or(isize::MAX));
            local.floor.set(here().saturating_sub(usable));
            local.stop.set(&raw const self.stop);
        });
        Watched { _watch: PhantomData }
    }

    /// Why the thread was stopped, if it was.
    pub(super) fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Acquire) {
            0 => None,
            code if code == Stop::Stack as u8 => Some(Stop::Stack),
            _ => Some(Stop::Memory),
        }
    }

    pub(super) fn clock(&self) -> Option<&Clock> {
        self.clock.get()
    }
}

/// While it lives, its thread is watched.
pub(super) struct Watched<'a> {
    /// Borrows the watch and stays on its thread.
    _watch: PhantomData<(&'a Watch, *const ())>,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        LOCAL.with(|local| local.stop.set(ptr::null()));
    }
}

/// The state of one thread. It needs no destructor, so that it can be used at any time.
struct Local {
    /// Where to say why this thread stops; null when it is not watched.
    stop: Cell<*const AtomicU8>,
    /// Bytes that may still be allocated.
    left: Cell<isize>,
    /// The lowest address to which the stack may grow.
    floor: Cell<usize>,
}

thread_local! {
    static LOCAL: Local = const {
        Local { stop: Cell::new(ptr::null()), left: Cell::new(0), floor: Cell::new(0) }
    };
}

/// An address in the current frame.
#[inline]
fn here() -> usize {
    let marker = 0u8;
    (&raw const marker).addr()
}

/// The system's allocator. Threads of [`super::run`] are stopped by it when they ask for more than
/// they may have.
#[derive(Debug, Clone, Copy, Default)]
pub struct WatchedAllocator;

#[inline]
fn charge(bytes: usize) {
    LOCAL.with(|local| {
        if !local.stop.get().is_null() {
            charge_watched(local, bytes);
        }
    });
}

fn charge_watched(local: &Local, bytes: usize) {
    let left = local.left.get().saturating_sub_unsigned(bytes);
    if left < 0 {
        stop(local, Stop::Memory);
    }
    if here() < local.floor.get() {
        stop(local, Stop::Stack);
    }
    local.left.set(left);
}

#[inline]
fn refund(bytes: usize) {
    LOCAL.with(|local| {
        if !local.stop.get().is_null() {
            local.left.set(local.left.get().saturating_add_unsigned(bytes));
        }
    });
}

/// The system has no more memory: a watched thread stops, others go the usual way.
#[cold]
fn refused() {
    LOCAL.with(|local| {
        if !local.stop.get().is_null() {
            stop(local, Stop::Memory);
        }
    });
}

/// Ends the work of this thread for good. An allocator can neither panic nor leave.
#[cold]
fn stop(local: &Local, why: Stop) -> ! {
    // SAFETY: the pointer is that of a watch which `Watched` borrows for as long as it is set, and
    // this thread, which owns the borrow, does not go on from here.
    unsafe { &*local.stop.get() }.store(why as u8, Ordering::Release);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

// SAFETY: everything is passed to the system's allocator as it came; counting touches no memory of
// the caller, allocates nothing and does not unwind.
unsafe impl GlobalAlloc for WatchedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: the caller's promises are those that `System` asks for.
        let pointer = unsafe { System.alloc(layout) };
        if pointer.is_null() {
            refused();
        }
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        charge(layout.size());
        // SAFETY: as above.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        if pointer.is_null() {
            refused();
        }
        pointer
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment.
        charge(size);
        // SAFETY: as above.
        let pointer = unsafe { System.realloc(old, layout, size) };
        if pointer.is_null() {
            refused();
        }
        refund(layout.size());
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        refund(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The processor time of a thread, readable from others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    #[cfg(target_os = "linux")]
    id: libc::clockid_t,
}

#[cfg(target_os = "linux")]
impl Clock {
    fn of_this_thread() -> Option<Self> {
        let mut id = 0;
        // SAFETY: the thread is the current one, and the clock's name is written into a local.
        let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut id) };
        (failed == 0).then_some(Self { id })
    }

    /// `None` when the thread has ended.
    pub(super) fn used(&self) -> Option<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is written into a local; a clock that is gone gives an error.
        let failed = unsafe { libc::clock_gettime(self.id, &raw mut time) };
        (failed == 0).then(|| {
            Duration::new(
                u64::try_from(time.tv_sec).unwrap_or_default(),
                u32::try_from(time.tv_nsec).unwrap_or_default(),
            )
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl Clock {
    fn of_this_thread() -> Option<Self> {
        None
    }

    pub(super) fn used(&self) -> Option<Duration> {
        None
    }
}
