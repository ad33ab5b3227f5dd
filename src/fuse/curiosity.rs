//! Whether those who list directories want to know more of the entries than their names.
//!
//! The kernel asks for names and attributes at once. Who looks at every entry (`ls -l`, `du`) is spared a request for each so; who
//! does not (`find`, a shell's completion) pays for it several times what the names cost. It cannot be asked beforehand, so the names
//! come alone until an entry of a directory that was listed shortly before is looked up by itself. From then on attributes come with
//! them, but those of the first entry of each directory: its lookup says that they are still wanted, and when it was missing a few
//! times they no longer are.
//!
//! Whoever is wrong about several programs at once, or about a change of mind, costs some requests and nothing else.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::tree::NodeId;

/// How many directories listed last are remembered: a walk lists some before it looks at the first one's entries.
const REMEMBERED: usize = 16;
/// After how many directories in whose entries nobody was interested attributes are left out again.
const PATIENCE: usize = 4;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Curiosity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    /// Directories that were listed with entries left out, since the last that was looked into.
    disregarded: usize,
    /// The directories listed last, the oldest overwritten first.
    listed: [Option<NodeId>; REMEMBERED],
    next: usize,
}

impl Curiosity {
    /// Whether attributes are to come with the names. What this says holds for a reply: a walk over a large directory shows what
    /// it wants before it has all of it.
    pub(super) fn is_raised(&self) -> bool {
        self.lock().wanted
    }

    /// Takes notice that a directory's beginning was told, some attributes of files being left out.
    pub(super) fn left_out(&self, directory: NodeId) {
        let mut state = self.lock();
        if state.wanted {
            state.disregarded += 1;
            state.wanted = state.disregarded <= PATIENCE;
        }
        let next = state.next;
        if let Some(place) = state.listed.get_mut(next) {
            *place = Some(directory);
        }
        state.next = (next + 1) % REMEMBERED;
    }

    /// Takes notice that a file in this directory was looked up by itself.
    pub(super) fn looked_up(&self, directory: NodeId) {
        let mut state = self.lock();
        if state.listed.contains(&Some(directory)) {
            state.wanted = true;
            state.disregarded = 0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_when_an_entry_was_looked_up_and_until_several_were_not() {
        let curiosity = Curiosity::default();
        curiosity.looked_up(NodeId(7));
        assert!(!curiosity.is_raised(), "nobody has listed that directory");
        for directory in 1..100 {
            curiosity.left_out(NodeId(directory));
            assert!(!curiosity.is_raised());
        }
        curiosity.looked_up(NodeId(1));
        assert!(!curiosity.is_raised(), "that was listed long ago");
        curiosity.looked_up(NodeId(99));
        assert!(curiosity.is_raised());
        // As a walk does that looks at everything, if in another order.
        for directory in 101..200 {
            curiosity.left_out(NodeId(directory));
            curiosity.looked_up(NodeId(directory - 3));
            assert!(curiosity.is_raised());
        }
        for directory in 0..PATIENCE {
            assert!(curiosity.is_raised());
            curiosity.left_out(NodeId(300 + directory as u64));
        }
        curiosity.left_out(NodeId(400));
        assert!(!curiosity.is_raised());
    }
}
