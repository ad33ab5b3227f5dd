//! The nodes the kernel knows.
//!
//! A node is one file in one view ([`Key`]). It lives from its first lookup until the kernel has forgotten all of them,
//! and longer while a node below it lives: a node's path is found by going up its parents, so they must stay.
//!
//! Invariants: every node but the root has its parent in the table; `children` counts the nodes that name a node as their
//! parent; going up always ends at the root. Parent and name are those of the last lookup, that is the path at which the
//! file was last seen; they may be out of date, and whoever uses them checks what they lead to.
//!
//! A packed file that is changed in place while somebody holds it open gets another node, and with it pages of its own
//! in the kernel: whoever holds the old one can neither be given new bytes nor leave old ones behind. So all who hold a
//! packed node hold the same state of its file. The root cannot get another node; it has to be let go first.
//!
//! A file that was removed leaves its inode number to the next that is created, while the kernel still believes that the name
//! of the one leads to its node: the other gets a node of its own, told apart by the time it was born, where the file system
//! keeps that.
//!
//! One mutex guards the table. It is held for a few steps up a path or a few map operations, never across a system call.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use super::numbers::{self, Key};
use super::source::join;
use super::{Kind, NodeId};
use crate::identity::Identity;

/// For how many nodes there is always room.
const LEAST_ROOM: usize = 1024;

#[derive(Debug)]
struct Node {
    key: Key,
    kind: Kind,
    parent: NodeId,
    name: Box<[u8]>,
    lookups: u64,
    children: u64,
    /// What the kernel was last told, or is about to be told.
    told: Option<Identity>,
    /// Whether it was told something else before, and may still go by that: the answer that tells of the change is sent after it
    /// was noted here.
    told_anew: bool,
    /// How many hold it open.
    holders: u64,
    /// What was last opened.
    held: Option<Identity>,
    /// Whether somebody has closed it since: the kernel's pages are those of what was last opened for sure.
    settled: bool,
}

impl Node {
    /// Whether somebody holds it open as something else than `identity`.
    fn is_held_as_another(&self, identity: Identity) -> bool {
        self.key.decoded && self.holders > 0 && self.held != Some(identity)
    }

    /// Notes what the kernel is going to be told.
    fn tell(&mut self, identity: Identity) {
        self.told_anew |= self.told.is_some_and(|told| told != identity);
        self.told = Some(identity);
    }

    /// Whether it is the file of another time that had this inode number.
    fn is_of_another(&self, identity: Identity) -> bool {
        self.told.is_some_and(|told| told.born != identity.born)
    }
}

/// What the table says about a node.
pub(super) struct Known {
    pub(super) key: Key,
    pub(super) kind: Kind,
    pub(super) parent: NodeId,
    /// The directory it lies in; the root lies in itself, under an empty name, unless the root is a file.
    pub(super) location: Vec<u8>,
    /// Its name there, in the source.
    pub(super) name: Box<[u8]>,
    /// When it was made, by what the kernel was last told; of the root it may not have been told anything.
    pub(super) born: Option<(i64, u32)>,
}

/// The table of nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    table: Mutex<Table>,
    root_device: u64,
}

#[derive(Debug)]
struct Table {
    nodes: HashMap<NodeId, Node>,
    /// The root is left out: whoever meets it again further down (bind mounts) needs another node.
    by_key: HashMap<Key, NodeId>,
}

impl Nodes {
    /// A table with only the root, whose name is empty unless it is a file.
    pub(super) fn new(key: Key, kind: Kind, name: &[u8]) -> Self {
        let root = Node {
            key,
            kind,
            parent: NodeId::ROOT,
            name: name.into(),
            lookups: 0,
            children: 0,
            told: None,
            told_anew: false,
            holders: 0,
            held: None,
            settled: false,
        };
        Self {
            table: Mutex::new(Table {
                nodes: HashMap::from([(NodeId::ROOT, root)]),
                by_key: HashMap::new(),
            }),
            root_device: key.device,
        }
    }

    /// What is known of a node; `None` if it was forgotten.
    pub(super) fn get(&self, id: NodeId) -> Option<Known> {
        let table = self.lock();
        let node = table.nodes.get(&id)?;
        Some(Known {
            key: node.key,
            kind: node.kind,
            parent: node.parent,
            location: table.location(node.parent)?,
            name: node.name.clone(),
            born: node.told.map(|told| told.born),
        })
    }

    /// What the kernel was last told of a node.
    #[cfg(feature = "remote")]
    pub(super) fn told(&self, id: NodeId) -> Option<Identity> {
        self.lock().nodes.get(&id)?.told
    }

    /// Whether the kernel may know another size of a node that is held as `identity`: it was last told another, or the answer that
    /// tells it of a change may still be on its way to it.
    pub(super) fn may_know_another_size(&self, id: NodeId, identity: Identity) -> bool {
        let table = self.lock();
        let another = |told: Identity| told.size != identity.size;
        let node = table.nodes.get(&id);
        node.is_some_and(|node| node.told_anew || node.told.is_some_and(another))
    }

    /// How many nodes were last seen in the directory `id`.
    pub(super) fn children(&self, id: NodeId) -> u64 {
        self.lock().nodes.get(&id).map_or(0, |node| node.children)
    }

    /// The node of `key`, seen as `name` in `parent`, with one lookup more; it is made if need be. `None` if the parent
    /// was forgotten.
    pub(super) fn look_up(
        &self,
        key: Key,
        kind: Kind,
        parent: NodeId,
        name: &[u8],
        told: Identity,
    ) -> Option<NodeId> {
        let mut table = self.lock();
        if !table.nodes.contains_key(&parent) {
            return None;
        }
        let known = table.by_key.get(&key).copied();
        let usable = |id: &NodeId| {
            let node = table.nodes.get(id);
            node.is_some_and(|node| !node.is_held_as_another(told) && !node.is_of_another(told))
        };
        let Some(id) = known.filter(usable) else {
            let id = table.number(key, self.root_device);
            table.by_key.insert(key, id);
            table.adopt(parent);
            let node = Node {
                key,
                kind,
                parent,
                name: name.into(),
                lookups: 1,
                children: 0,
                told: Some(told),
                told_anew: false,
                holders: 0,
                held: None,
                settled: false,
            };
            table.nodes.insert(id, node);
            return Some(id);
        };
        // Somewhere below itself, a directory can only be seen through a bind mount or in the middle of a rename. Its
        // path so far is kept then, or going up would never end.
        let moves = !table.is_at_or_above(id, parent);
        let node = table.nodes.get_mut(&id)?;
        node.lookups = node.lookups.saturating_add(1);
        node.kind = kind;
        node.tell(told);
        if moves {
            if *node.name != *name {
                node.name = name.into();
            }
            let old_parent = std::mem::replace(&mut node.parent, parent);
            if old_parent != parent {
                table.adopt(parent);
                table.release(old_parent);
            }
        }
        Some(id)
    }

    /// Takes back `lookups` lookups of a node.
    pub(super) fn forget(&self, id: NodeId, lookups: u64) {
        let mut table = self.lock();
        if let Some(node) = table.nodes.get_mut(&id) {
            node.lookups = node.lookups.saturating_sub(lookups);
            table.remove_unused(id);
        }
    }

    /// Notes what the kernel is told of a node; says whether it may be told that: not if others hold another state.
    pub(super) fn tell(&self, id: NodeId, identity: Identity) -> bool {
        match self.lock().nodes.get_mut(&id) {
            Some(node) if !node.is_held_as_another(identity) => {
                node.tell(identity);
                true
            }
            _ => false,
        }
    }

    /// Notes that one more holds a node open, as `identity`, and says whether the pages the kernel keeps are still right;
    /// `None` if it must look the file up again before it may be held so.
    pub(super) fn hold(&self, id: NodeId, identity: Identity) -> Option<bool> {
        let mut table = self.lock();
        let node = table.nodes.get_mut(&id)?;
        // Another file under a number that was used before: what the kernel let somebody open was the first one.
        let another = node.told.is_none_or(|told| told.born != identity.born);
        if another
            || node.key.decoded
                && (node.told != Some(identity) || node.is_held_as_another(identity))
        {
            return None;
        }
        if node.held != Some(identity) {
            node.held = Some(identity);
            node.settled = false;
        }
        node.holders += 1;
        // Two who open a changed file at once both have the kernel drop its pages: the first may not have done so yet.
        Some(node.settled)
    }

    /// Notes that one who held a node as `identity` lets it go.
    pub(super) fn let_go(&self, id: NodeId, identity: Identity) {
        if let Some(node) = self.lock().nodes.get_mut(&id) {
            node.holders = node.holders.saturating_sub(1);
            node.settled |= node.held == Some(identity);
            // Before he was told that he holds it, the kernel was told to ask for its attributes again.
            node.told_anew &= node.told != Some(identity);
        }
    }

    /// The numbers the nodes of `keys` have, or would get now.
    pub(super) fn numbers(&self, keys: impl Iterator<Item = Key>) -> Vec<u64> {
        let table = self.lock();
        keys.map(|key| match table.by_key.get(&key) {
            Some(id) => id.0,
            None => table.number(key, self.root_device).0,
        })
        .collect()
    }

    /// The memory in use, in bytes, roughly.
    pub(super) fn memory(&self) -> usize {
        // Names are mostly short, and both maps are filled by about two thirds.
        let node = size_of::<(NodeId, Node)>() + size_of::<(Key, NodeId)>();
        self.lock().nodes.len() * (node * 3 / 2 + 32)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&self, key: Key, root_device: u64) -> NodeId {
        NodeId(numbers::choose(key, root_device, |number| {
            self.nodes.contains_key(&NodeId(number))
        }))
    }

    /// The location of a directory node.
    fn location(&self, mut id: NodeId) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        while id != NodeId::ROOT {
            let node = self.nodes.get(&id)?;
            names.push(&node.name);
            id = node.parent;
        }
        let names = names.into_iter().rev();
        Some(names.fold(Vec::new(), |path, name| join(&path, name)))
    }

    fn is_at_or_above(&self, id: NodeId, mut below: NodeId) -> bool {
        while below != id {
            match self.nodes.get(&below) {
                Some(node) if below != NodeId::ROOT => below = node.parent,
                _ => return false,
            }
        }
        true
    }

    fn adopt(&mut self, parent: NodeId) {
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children += 1;
        }
    }

    fn release(&mut self, parent: NodeId) {
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children = node.children.saturating_sub(1);
            self.remove_unused(parent);
        }
    }

    /// Removes a node that neither the kernel nor a child needs, and then its parents, as far as the same is true of them.
    fn remove_unused(&mut self, mut id: NodeId) {
        while id != NodeId::ROOT
            && let Some(node) = self.nodes.get(&id)
            && node.lookups == 0
            && node.children == 0
        {
            let (key, parent) = (node.key, node.parent);
            self.nodes.remove(&id);
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
            if let Some(parent) = self.nodes.get_mut(&parent) {
                parent.children = parent.children.saturating_sub(1);
            }
            id = parent;
        }
        self.give_room_back();
    }

    /// Gives memory back when most of it is empty, as after a walk through a large tree that the kernel has forgotten.
    fn give_room_back(&mut self) {
        let used = self.nodes.len().max(LEAST_ROOM);
        if self.nodes.capacity() / 8 > used {
            self.nodes.shrink_to(used * 2);
            self.by_key.shrink_to(used * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(inode: u64) -> Key {
        Key {
            device: 7,
            inode,
            decoded: false,
        }
    }

    fn seen(nodes: &Nodes, inode: u64, parent: NodeId, name: &[u8]) -> NodeId {
        let told = Identity {
            device: 7,
            born: (0, 0),
            inode,
            size: 0,
            modified: (0, 0),
        };
        nodes
            .look_up(key(inode), Kind::Directory, parent, name, told)
            .unwrap()
    }

    #[test]
    fn a_file_that_got_the_inode_number_of_another_does_not_get_its_node() {
        let nodes = Nodes::new(key(1), Kind::Directory, b"");
        let look_up = |name: &[u8], born| {
            let told = Identity {
                device: 7,
                inode: 5,
                born,
                size: 10,
                modified: (3, 0),
            };
            let found = nodes.look_up(key(5), Kind::File, NodeId::ROOT, name, told);
            found.unwrap()
        };
        let first = look_up(b"gone", (1, 0));
        assert_eq!(look_up(b"link", (1, 0)), first);
        assert_eq!(look_up(b"gone", (1, 0)), first);
        let second = look_up(b"other", (2, 0));
        assert_ne!(second, first);
        assert_eq!(look_up(b"other", (2, 0)), second);
        assert_eq!(place(&nodes, first).unwrap(), "gone");
        nodes.forget(first, 3);
        assert_eq!(look_up(b"other", (2, 0)), second);
    }

    fn place(nodes: &Nodes, id: NodeId) -> Option<String> {
        let known = nodes.get(id)?;
        Some(String::from_utf8(join(&known.location, &known.name)).unwrap())
    }

    fn table() -> Nodes {
        Nodes::new(key(2), Kind::Directory, b"")
    }

    #[test]
    fn a_forgotten_parent_stays_while_a_child_needs_its_path() {
        let nodes = table();
        let a = seen(&nodes, 10, NodeId::ROOT, b"a");
        let b = seen(&nodes, 11, a, b"b");
        let c = seen(&nodes, 12, b, b"c");
        nodes.forget(a, 1);
        nodes.forget(b, 1);
        assert_eq!(place(&nodes, c).unwrap(), "a/b/c");
        nodes.forget(c, 1);
        assert!([a, b, c].iter().all(|&id| nodes.get(id).is_none()));
        assert_eq!(nodes.lock().nodes.len(), 1);
        assert_eq!(nodes.lock().by_key.len(), 0);
        assert_eq!(nodes.lock().nodes[&NodeId::ROOT].children, 0);
    }

    #[test]
    fn a_node_lives_until_every_lookup_is_forgotten() {
        let nodes = table();
        let a = seen(&nodes, 10, NodeId::ROOT, b"a");
        assert_eq!(seen(&nodes, 10, NodeId::ROOT, b"a"), a);
        nodes.forget(a, 1);
        assert!(nodes.get(a).is_some());
        nodes.forget(a, 5);
        assert!(nodes.get(a).is_none());
        nodes.forget(a, 1);
        nodes.forget(NodeId::ROOT, 1000);
        assert!(nodes.get(NodeId::ROOT).is_some());
    }

    #[test]
    fn a_node_seen_elsewhere_moves_and_lets_its_old_parent_go() {
        let nodes = table();
        let a = seen(&nodes, 10, NodeId::ROOT, b"a");
        let b = seen(&nodes, 11, NodeId::ROOT, b"b");
        let file = seen(&nodes, 12, a, b"file");
        nodes.forget(a, 1);
        assert_eq!(seen(&nodes, 12, b, b"moved"), file);
        assert_eq!(place(&nodes, file).unwrap(), "b/moved");
        assert!(nodes.get(a).is_none());
    }

    #[test]
    fn a_directory_seen_below_itself_does_not_make_a_circle() {
        let nodes = table();
        let a = seen(&nodes, 10, NodeId::ROOT, b"a");
        let b = seen(&nodes, 11, a, b"b");
        assert_eq!(seen(&nodes, 10, b, b"again"), a);
        assert_eq!(seen(&nodes, 10, a, b"again"), a);
        assert_eq!(place(&nodes, b).unwrap(), "a/b");
    }

    #[test]
    fn a_listing_foresees_the_number_a_lookup_gives() {
        let nodes = table();
        let raw = key(10);
        let decoded = Key {
            decoded: true,
            ..raw
        };
        assert_eq!(nodes.numbers([raw, decoded].into_iter()), [10, 10]);
        seen(&nodes, 10, NodeId::ROOT, b"raw");
        let foreseen = nodes.numbers([raw, decoded].into_iter());
        assert_eq!(foreseen[0], 10);
        let told = Identity {
            device: 7,
            born: (0, 0),
            inode: 10,
            size: 0,
            modified: (0, 0),
        };
        let given = nodes.look_up(decoded, Kind::File, NodeId::ROOT, b"x.warp", told);
        let number = NodeId(foreseen[1]);
        assert_eq!(given, Some(number));
        assert_ne!(foreseen[1], 10);
    }

    #[test]
    fn a_packed_file_changed_while_it_is_held_gets_another_node() {
        let nodes = table();
        let packed = Key {
            decoded: true,
            ..key(10)
        };
        let state = |size| Identity {
            device: 7,
            born: (0, 0),
            inode: 10,
            size,
            modified: (0, 0),
        };
        let look_up = |size| {
            let found = nodes.look_up(packed, Kind::File, NodeId::ROOT, b"x.warp", state(size));
            found.unwrap()
        };
        let first = look_up(1);
        assert_eq!(nodes.hold(first, state(2)), None);
        assert_eq!(nodes.hold(first, state(1)), Some(false));
        assert!(!nodes.tell(first, state(2)));

        let second = look_up(2);
        assert_ne!(second, first);
        assert_eq!(look_up(2), second);
        assert_eq!(nodes.hold(second, state(2)), Some(false));
        assert_eq!(nodes.hold(first, state(1)), Some(false));

        nodes.let_go(second, state(2));
        assert_eq!(nodes.hold(second, state(2)), Some(true));
        nodes.let_go(second, state(2));
        // Nobody holds it any more, so it is new under its own number.
        assert_eq!(look_up(3), second);
        assert_eq!(nodes.hold(second, state(3)), Some(false));
        nodes.forget(first, 1);
        assert_eq!(look_up(3), second);
    }

    #[test]
    fn who_opens_a_changed_file_while_an_answer_tells_of_it_has_the_kernel_ask_how_long_it_is() {
        for decoded in [true, false] {
            let nodes = table();
            let file = Key { decoded, ..key(10) };
            let state = |size| Identity {
                device: 7,
                born: (0, 0),
                inode: 10,
                size,
                modified: (0, 0),
            };
            let look_up = |size| {
                let found = nodes.look_up(file, Kind::File, NodeId::ROOT, b"x.warp", state(size));
                found.unwrap()
            };
            let node = look_up(1);
            assert!(nodes.hold(node, state(1)).is_some());
            assert!(!nodes.may_know_another_size(node, state(1)));
            nodes.let_go(node, state(1));
            // By a lookup or by a listing, or because somebody asks for its attributes.
            assert_eq!(look_up(2), node);
            assert!(nodes.tell(node, state(2)));
            for _ in 0..2 {
                assert!(nodes.hold(node, state(2)).is_some());
                assert!(nodes.may_know_another_size(node, state(2)));
            }
            nodes.let_go(node, state(2));
            assert!(nodes.hold(node, state(2)).is_some());
            assert!(!nodes.may_know_another_size(node, state(2)));
        }
    }
}
