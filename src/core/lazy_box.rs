//! A value that is allocated only once it differs from the default.
//!
//! Most queued executions are in their first attempt and have no earlier ones. With an
//! [`Attempt`](super::task::Attempt) and a list of its own each, 100,000 of them would take 19 MB more.

use std::ops::{Deref, DerefMut};

/// A type with a default that all of its [`LazyBox`]es share.
pub(super) trait SharedDefault: Sized {
    /// The shared default.
    fn shared() -> &'static Self;
    /// A copy of the default, to be changed.
    fn owned() -> Self;
}

/// A `T` that reads as its default until it is written to. Taking a mutable reference allocates it.
#[derive(Debug, Clone)]
pub(super) struct LazyBox<T>(Option<Box<T>>);

impl<T> LazyBox<T> {
    /// The default; allocates nothing.
    pub const fn unallocated() -> Self {
        LazyBox(None)
    }

    /// This value.
    pub fn new(value: T) -> Self {
        LazyBox(Some(Box::new(value)))
    }

    /// The value, if it was allocated.
    pub fn allocated_mut(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

impl<T: SharedDefault> LazyBox<T> {
    /// The value itself.
    pub fn into_inner(self) -> T {
        self.0.map_or_else(T::owned, |value| *value)
    }
}

impl<T: SharedDefault + 'static> Deref for LazyBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::shared())
    }
}

impl<T: SharedDefault + 'static> DerefMut for LazyBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::owned()))
    }
}
