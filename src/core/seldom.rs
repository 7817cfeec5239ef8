//! What most things do not have: it takes no memory until there is something in it.
//!
//! A hundred thousand executions may wait, and hardly more is to be said of each than that it does.

use std::ops::{Deref, DerefMut};

/// What stands there as long as nothing is kept.
pub(super) trait Usual: Sized {
    /// The same for all.
    fn usual() -> &'static Self;
    /// One of them, to be changed.
    fn fresh() -> Self;
}

/// A `T` that mostly is as [`Usual`]. To change it, or only to ask for that, makes one of its own.
#[derive(Debug, Clone)]
pub(super) struct Seldom<T>(Option<Box<T>>);

impl<T> Seldom<T> {
    /// As usual.
    pub const fn usual() -> Self {
        Seldom(None)
    }

    /// This one.
    pub fn of(value: T) -> Self {
        Seldom(Some(Box::new(value)))
    }

    /// The one of its own, if it has one.
    pub fn own(&mut self) -> Option<&mut T> {
        self.0.as_deref_mut()
    }
}

impl<T: Usual> Seldom<T> {
    /// What is there, by itself.
    pub fn into_inner(self) -> T {
        self.0.map_or_else(T::fresh, |own| *own)
    }
}

impl<T: Usual + 'static> Deref for Seldom<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::usual())
    }
}

impl<T: Usual + 'static> DerefMut for Seldom<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::fresh()))
    }
}
