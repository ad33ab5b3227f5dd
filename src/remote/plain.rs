//! An object that is read as it is, by a kernel's requests. Whoever reads it from front to back is read ahead of.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::object::Object;
use crate::archive::{Distant, Source};

/// How far from where the last read ended the next one may begin, in bytes: a kernel makes several at once, in no order.
const SLACK: u64 = 1 << 20;
/// How much has to be read in order before more is asked for ahead, in bytes.
const IN_ORDER: u64 = 512 << 10;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Plain {
    object: Arc<Object>,
    order: Mutex<Order>,
}

/// How an object was read lately.
#[derive(Debug, Default)]
struct Order {
    /// Behind the farthest read of those in order.
    next: u64,
    /// How much was read in order, in bytes.
    length: u64,
    /// Whether what comes next was asked for.
    ahead: bool,
}

impl Order {
    /// Takes notice of a read; says what to ask for ahead from now on, if that changes: nothing, where the range is empty.
    fn follow(&mut self, read: Range<u64>, size: u64) -> Option<Range<u64>> {
        let near = self.next.saturating_sub(SLACK)..=self.next.saturating_add(SLACK);
        if !near.contains(&read.start) {
            let ahead = std::mem::take(&mut self.ahead);
            self.next = read.end;
            self.length = 0;
            return ahead.then_some(0..0);
        }
        self.next = self.next.max(read.end);
        self.length += read.end - read.start;
        if self.ahead || self.length < IN_ORDER || self.next >= size {
            return None;
        }
        self.ahead = true;
        Some(self.next..size)
    }
}

impl Plain {
    pub(crate) fn new(object: Arc<Object>) -> Self {
        Self {
            object,
            order: Mutex::default(),
        }
    }

    /// The object.
    pub(crate) fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// As [`Source::read_at`].
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let size = self.object.version().size;
        let end = size.min(offset.saturating_add(buffer.len() as u64));
        if offset >= end {
            return Ok(0);
        }
        let order = || self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = order().follow(offset..end, size);
        let whole = 0..size;
        let is_kept = |ahead: &Range<u64>| {
            let first = ahead.start..ahead.end.min(ahead.start.saturating_add(SLACK));
            !ahead.is_empty() && self.object.is_kept(&first, &whole)
        };
        if let Some(ahead) = ahead.filter(|ahead| !is_kept(ahead)) {
            self.object.expect(ahead);
        }
        let outcome = self.object.read_part(buffer, offset, &whole);
        if outcome.is_err() {
            // What was asked for may have failed for good: the next read asks anew.
            *order() = Order::default();
            self.object.expect(0..0);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_in_order_is_read_ahead_of_and_what_is_not_is_not() {
        const SIZE: u64 = 1 << 30;
        let mut order = Order::default();
        let step = 128 << 10;
        let asked: Vec<_> = (0..5)
            .map(|n| order.follow(n * step..(n + 1) * step, SIZE))
            .collect();
        assert_eq!(asked, [None, None, None, Some(4 * step..SIZE), None]);
        // Two at once, in the other order.
        assert_eq!(order.follow(6 * step..7 * step, SIZE), None);
        assert_eq!(order.follow(5 * step..6 * step, SIZE), None);
        assert_eq!(order.follow(SIZE / 2..SIZE / 2 + 4096, SIZE), Some(0..0));
        for n in 0..100 {
            let at = n * 77_777_777 % SIZE;
            assert_eq!(order.follow(at..at + 4096, SIZE), None);
        }
    }
}
