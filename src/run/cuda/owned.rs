//! Handles of the driver and of libraries, given back when they are dropped: on the way out of an error too.

use std::ops::Deref;

/// A handle and how it is given back. It is used as the handle is.
pub(super) struct Owned<T: Copy> {
    handle: T,
    release: fn(T),
}

impl<T: Copy> Owned<T> {
    /// `release` is called once, with the handle. That it fails is no error: the process gives back what is left.
    pub fn new(handle: T, release: fn(T)) -> Owned<T> {
        Owned { handle, release }
    }
}

impl<T: Copy> Deref for Owned<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.handle
    }
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        (self.release)(self.handle);
    }
}
