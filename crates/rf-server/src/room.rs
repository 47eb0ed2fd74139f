//! The memory that requests hold for as long as they last: large bodies, input that waits for a program, output that is
//! collected. All of it together has one bound over all users.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Up to this many bytes of one thing are held without asking. Chosen: nearly every request's.
const SMALL: usize = 64 << 10;
/// Held beyond that over all requests, KiB. Chosen: 256 MiB.
const ROOM_KIB: usize = 256 << 10;

/// The room; clones are the same one.
#[derive(Clone, Debug)]
pub struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_KIB)))
    }
}

impl Room {
    /// A share of it that holds nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { room: self.clone(), paid: SMALL, permits: Vec::new() }
    }

    /// KiB that are free.
    #[must_use]
    pub fn free_kib(&self) -> usize {
        self.0.available_permits()
    }
}

/// What one thing holds; given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    room: Room,
    paid: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Share {
    /// Whether it may hold `length` bytes in all; once it may, it holds them.
    #[must_use]
    pub fn grow(&mut self, length: usize) -> bool {
        if length <= self.paid {
            return true;
        }
        // Doubling: what comes in small pieces asks seldom.
        let more = length.max(self.paid * 2) - self.paid;
        let kib = u32::try_from(more.div_ceil(1024)).unwrap_or(u32::MAX);
        match Arc::clone(&self.room.0).try_acquire_many_owned(kib) {
            Ok(permit) => {
                self.permits.push(permit);
                self.paid += more;
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let room = Room::default();
        let mut small = room.share();
        assert!(small.grow(SMALL));
        assert_eq!(room.free_kib(), ROOM_KIB, "what is small is free");
        let mut large = room.share();
        assert!(large.grow((ROOM_KIB - 1024) << 10));
        assert!(!small.grow(4 << 20));
        assert!(small.grow(SMALL), "what it had it keeps");
        drop(large);
        assert!(small.grow(4 << 20));
        drop(small);
        assert_eq!(room.free_kib(), ROOM_KIB);
    }
}
