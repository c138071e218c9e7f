//! One thread at a time where a graph is captured, and where the driver may wait for everything.
//!
//! What waits for the whole context breaks the captures of all threads (CUDA driver API, `cuCtxSynchronize`), and libraries
//! wait for it when handles are made and given back. So a step is prepared and captured by one thread at a time, and none is
//! given back meanwhile. Steps that were captured run side by side.

use std::sync::{Condvar, Mutex, PoisonError};

static TAKEN: Mutex<bool> = Mutex::new(false);
static FREE: Condvar = Condvar::new();

/// The right to capture and to wait, until it is dropped. Unlike a lock's guard it may be dropped on another thread.
pub(super) struct Alone(());

impl Alone {
    /// Waits until nobody else has it. Whoever has it may not ask for it again.
    pub fn take() -> Alone {
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = FREE.wait_while(taken, |taken| *taken).unwrap_or_else(PoisonError::into_inner);
        *taken = true;
        Alone(())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        FREE.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn one_thread_at_a_time() {
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    for _ in 0..50 {
                        let _alone = Alone::take();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
    }
}
