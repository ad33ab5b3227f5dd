use super::listing::ListedEntry;
use super::*;
use crate::left_out::left_out;
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

const PACKED: &[u8] = include_bytes!("../../tests/data/v2-lz4-none.warp");
const PACKED_ORIGINAL: u64 = 100_003;
const OTHER_PACKED: &[u8] = include_bytes!("../../tests/data/v2-one-byte.warp");
const DAMAGED_MAGIC: &[u8] = include_bytes!("../../tests/data/bad-magic.warp");

struct Fixture {
    source: TempDir,
    mountpoint: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            source: tempfile::tempdir().unwrap(),
            mountpoint: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) {
        symlink(target, self.path(name)).unwrap();
    }

    fn tree(&self) -> Tree {
        open(self.source.path(), self.mountpoint.path())
    }

    fn tree_over_itself(&self) -> Tree {
        open(self.source.path(), self.source.path())
    }
}

fn open(source: &Path, mountpoint: &Path) -> Tree {
    try_open(source, mountpoint).unwrap()
}

fn try_open(source: &Path, mountpoint: &Path) -> Result<Tree> {
    Tree::open(source, mountpoint, NonZeroUsize::new(1000).unwrap())
}

fn find(tree: &Tree, parent: NodeId, name: &str) -> Option<Attributes> {
    tree.lookup(parent, name.as_bytes()).unwrap()
}

/// Without the time of the last read, which our own reading changes.
fn lasting(attributes: Attributes) -> Attributes {
    Attributes {
        accessed: SystemTime::UNIX_EPOCH,
        ..attributes
    }
}

fn at_root(tree: &Tree, name: &str) -> Attributes {
    find(tree, NodeId::ROOT, name).unwrap_or_else(|| panic!("no {name}"))
}

fn listed(listing: &Listing) -> Vec<ListedEntry<'_>> {
    (0..listing.len())
        .map(|i| listing.get(i).unwrap())
        .collect()
}

fn shown_names(tree: &Tree, directory: NodeId) -> Vec<String> {
    let listing = tree.list(directory).unwrap();
    let mut names: Vec<String> = listed(&listing)[2..]
        .iter()
        .map(|entry| String::from_utf8_lossy(entry.name).into_owned())
        .collect();
    names.sort();
    names
}

fn target(tree: &Tree, name: &str) -> String {
    let link = at_root(tree, name);
    assert_eq!(link.kind, Kind::Symlink);
    let target = tree.read_link(link.node).unwrap();
    assert_eq!(link.size, target.len() as u64);
    String::from_utf8(target).unwrap()
}

fn text(opened: OpenedFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    opened
        .content
        .file()
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

fn is_changed<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result.unwrap_err().kind(), ErrorKind::Changed)
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Option<i32> {
    match result.unwrap_err().kind() {
        ErrorKind::Io { source, .. } => source.raw_os_error(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_packed_file_shows_without_its_suffix_and_with_its_original_size() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    let tree = fixture.tree();
    let file = at_root(&tree, "x");
    assert_eq!((file.kind, file.size), (Kind::File, PACKED_ORIGINAL));
    assert_eq!(find(&tree, NodeId::ROOT, "x.warp"), None);
    assert_eq!(shown_names(&tree, NodeId::ROOT), ["x"]);
    let header = tree.description(file.node).unwrap().unwrap();
    assert_eq!(header.original_size, PACKED_ORIGINAL);
    let again = tree.attributes(file.node).unwrap();
    assert_eq!(lasting(again), lasting(file));
}

#[test]
fn the_packed_file_stays_raw_beside_anything_of_its_short_name() {
    let fixture = Fixture::new();
    for name in ["file", "directory", "link"] {
        fixture.write(&format!("{name}.warp"), PACKED);
    }
    fixture.write("file", b"plain");
    fs::create_dir(fixture.path("directory")).unwrap();
    fixture.link("link", "nowhere");
    let tree = fixture.tree();
    assert_eq!(at_root(&tree, "file").size, 5);
    assert_eq!(at_root(&tree, "directory").kind, Kind::Directory);
    assert_eq!(at_root(&tree, "link").kind, Kind::Symlink);
    for name in ["file.warp", "directory.warp", "link.warp"] {
        let raw = at_root(&tree, name);
        assert_eq!(raw.size, PACKED.len() as u64);
        assert_eq!(tree.description(raw.node).unwrap(), None);
        assert_eq!(text(tree.open_file(raw.node).unwrap()), PACKED);
    }
}

#[test]
fn what_is_no_packed_file_shows_as_it_is_whatever_its_name() {
    let fixture = Fixture::new();
    fixture.write("magic.warp", DAMAGED_MAGIC);
    fixture.write("empty.warp", b"");
    fixture.write(".warp", PACKED);
    fixture.write(".x.warp.abc.part", PACKED);
    fixture.write(
        "count.warp",
        include_bytes!("../../tests/data/bad-chunk-count.warp"),
    );
    fs::create_dir(fixture.path("d.warp")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        fixture.path("pipe.warp"),
        FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let tree = fixture.tree();
    let names = shown_names(&tree, NodeId::ROOT);
    let as_they_are = [
        ".warp",
        ".x.warp.abc.part",
        "count.warp",
        "d.warp",
        "empty.warp",
        "magic.warp",
        "pipe.warp",
    ];
    assert_eq!(names, as_they_are);
    for name in as_they_are {
        assert_eq!(
            at_root(&tree, name).inode,
            fs::metadata(fixture.path(name)).unwrap().ino()
        );
    }
    assert_eq!(at_root(&tree, "pipe.warp").kind, Kind::Fifo);
    assert_eq!(find(&tree, NodeId::ROOT, "magic"), None);
    assert_eq!(find(&tree, NodeId::ROOT, ""), None);
}

#[test]
fn a_file_that_is_no_longer_packed_when_its_header_is_asked_for_does_not_show_raw_as_the_original()
{
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    let tree = fixture.tree();
    let view = tree.view(NodeId::ROOT).unwrap();
    let stat = |name: &[u8]| tree.source.stat(&view.directory, name).unwrap().unwrap();
    let names = tree.names(Patience::ForLeases);
    let before = stat(b"x.warp");
    fixture.write("x.warp", b"no longer packed");
    assert!(is_changed(
        names.header_of_stripped(&view, b"x.warp", &before)
    ));
    assert_eq!(find(&tree, NodeId::ROOT, "x"), None);
    // A link has no header.
    fixture.link("l.warp", "x.warp");
    let link = names.header_of_stripped(&view, b"l.warp", &stat(b"l.warp"));
    assert_eq!(link.unwrap(), None);
}

#[test]
fn of_a_chain_of_suffixes_each_entry_shows_once() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    fixture.write("x.warp.warp", OTHER_PACKED);
    let tree = fixture.tree();
    assert_eq!(shown_names(&tree, NodeId::ROOT), ["x", "x.warp"]);
    assert_eq!(at_root(&tree, "x").size, PACKED_ORIGINAL);
    assert_eq!(at_root(&tree, "x.warp").size, 1);
    assert_eq!(find(&tree, NodeId::ROOT, "x.warp.warp"), None);

    fixture.write("x", b"plain");
    assert_eq!(
        shown_names(&tree, NodeId::ROOT),
        ["x", "x.warp", "x.warp.warp"]
    );
    assert_eq!(at_root(&tree, "x").size, 5);
    assert_eq!(at_root(&tree, "x.warp").size, PACKED.len() as u64);
    assert_eq!(
        at_root(&tree, "x.warp.warp").size,
        OTHER_PACKED.len() as u64
    );
}

#[test]
fn names_are_bytes_and_may_be_as_long_as_the_file_system_lets_them() {
    let fixture = Fixture::new();
    let not_utf8 = [b"\xff\xfe".to_vec(), b"\n \x01".to_vec()];
    let longest_short = [b's'; 250].to_vec();
    for name in not_utf8.iter().chain([&longest_short]) {
        let source_name = [name, names::SUFFIX].concat();
        let path = fixture
            .source
            .path()
            .join(std::ffi::OsStr::from_bytes(&source_name));
        fs::write(path, PACKED).unwrap();
    }
    fixture.write(&"p".repeat(255), b"plain");
    let tree = fixture.tree();
    for name in not_utf8.iter().chain([&longest_short]) {
        let found = tree.lookup(NodeId::ROOT, name).unwrap().unwrap();
        assert_eq!(found.size, PACKED_ORIGINAL);
    }
    assert_eq!(at_root(&tree, &"p".repeat(255)).size, 5);
    assert_eq!(find(&tree, NodeId::ROOT, &"q".repeat(255)), None);
    assert_eq!(find(&tree, NodeId::ROOT, &"s".repeat(255)), None);
    let too_long = tree.lookup(NodeId::ROOT, &[b'q'; 256]);
    assert_eq!(errno(too_long), Some(Errno::NAMETOOLONG.raw_os_error()));
    assert_eq!(tree.list(NodeId::ROOT).unwrap().len(), 2 + 4);
}

#[test]
fn a_links_target_loses_its_suffix_if_it_leads_to_something_shown_without_it() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("a/b")).unwrap();
    fixture.write("x.warp", PACKED);
    fixture.write("a/y.warp", PACKED);
    fixture.write("raw", b"plain");
    fixture.write("raw.warp", PACKED);
    fixture.write("bad.warp", DAMAGED_MAGIC);
    fixture.link("beside", "x.warp");
    fixture.link("below", "./a//b/../y.warp");
    fixture.link("way", "a/b");
    fixture.link("through", "way/../y.warp");
    fixture.link("chain", "beside.warp");
    fixture.link("beside.warp", "x.warp");
    fixture.link("to-raw", "raw.warp");
    fixture.link("to-bad", "bad.warp");
    fixture.link("dangling", "missing/x.warp");
    fixture.link("missing-link", "missing.warp");
    fixture.link("out", "../../../../../../../etc/x.warp");
    fixture.link("directory", "x.warp/");
    let tree = fixture.tree();
    assert_eq!(target(&tree, "beside"), "x");
    assert_eq!(target(&tree, "below"), "./a//b/../y");
    assert_eq!(target(&tree, "through"), "way/../y");
    // beside.warp keeps its name, because beside is taken.
    assert_eq!(target(&tree, "beside.warp"), "x");
    assert_eq!(target(&tree, "chain"), "beside.warp");
    assert_eq!(target(&tree, "to-raw"), "raw.warp");
    assert_eq!(target(&tree, "to-bad"), "bad.warp");
    assert_eq!(target(&tree, "dangling"), "missing/x.warp");
    assert_eq!(target(&tree, "missing-link"), "missing.warp");
    assert_eq!(target(&tree, "out"), "../../../../../../../etc/x.warp");
    assert_eq!(target(&tree, "directory"), "x.warp/");
}

#[test]
fn a_links_own_name_loses_its_suffix_if_its_target_does() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    fixture.write("plain", b"plain");
    fixture.link("l.warp", "x.warp");
    fixture.link("m.warp", "l.warp");
    fixture.link("p.warp", "plain");
    fixture.link("d.warp", "missing.warp");
    let tree = fixture.tree();
    let names = shown_names(&tree, NodeId::ROOT);
    assert_eq!(names, ["d.warp", "l", "m", "p.warp", "plain", "x"]);
    assert_eq!(target(&tree, "l"), "x");
    assert_eq!(target(&tree, "m"), "l");
    assert_eq!(find(&tree, NodeId::ROOT, "l.warp"), None);
}

#[test]
fn loops_of_links_end_and_stay_as_they_are() {
    let fixture = Fixture::new();
    fixture.link("self.warp", "self.warp");
    fixture.link("a.warp", "b.warp");
    fixture.link("b.warp", "a.warp");
    fixture.link("way", "way");
    fixture.link("through", "way/x.warp");
    // Each asks about two more, which would take 2^40 steps if every way were gone.
    for n in 0..45 {
        fixture.link(&format!("c{n}.warp"), format!("c{}.warp.warp", n + 1));
        fixture.link(&format!("c{n}.warp.warp"), format!("c{}.warp.warp", n + 1));
    }
    let tree = fixture.tree();
    assert_eq!(target(&tree, "self.warp"), "self.warp");
    assert_eq!(target(&tree, "a.warp"), "b.warp");
    assert_eq!(target(&tree, "through"), "way/x.warp");
    assert_eq!(target(&tree, "c0.warp.warp"), "c1.warp.warp");
    assert_eq!(tree.list(NodeId::ROOT).unwrap().len(), 2 + 5 + 90);
}

#[test]
fn an_absolute_target_loses_its_suffix_only_if_it_leads_through_the_mount() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    let root = fixture.source.path().canonicalize().unwrap();
    let absolute = root.join("x.warp").to_str().unwrap().to_owned();
    fixture.link("absolute", &absolute);
    let up = format!("../{}/x.warp", root.file_name().unwrap().to_str().unwrap());
    fixture.link("up-and-back", &up);
    let shown = root.join("x").to_str().unwrap().to_owned();
    let over = fixture.tree_over_itself();
    assert_eq!(target(&over, "absolute"), shown);
    assert_eq!(
        target(&over, "up-and-back"),
        up.strip_suffix(".warp").unwrap()
    );
    let elsewhere = fixture.tree();
    assert_eq!(target(&elsewhere, "absolute"), absolute);
    assert_eq!(target(&elsewhere, "up-and-back"), up);
}

#[test]
fn attributes_are_the_sources_but_for_the_size() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    let path = fixture.path("x.warp");
    fs::hard_link(&path, fixture.path("y.warp")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6751)).unwrap();
    let modified = SystemTime::UNIX_EPOCH - Duration::new(5, 250_000_001);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    let source = fs::metadata(&path).unwrap();
    let shown = at_root(&fixture.tree(), "x");
    assert_eq!(u32::from(shown.mode), source.mode() & 0o7777);
    assert_eq!(shown.mode, 0o6751);
    assert_eq!((shown.uid, shown.gid), (source.uid(), source.gid()));
    assert_eq!(shown.nlink, 2);
    assert_eq!(shown.blocks, source.blocks());
    assert_eq!(u64::from(shown.block_size), source.blksize());
    assert_eq!(shown.inode, source.ino());
    assert_eq!(shown.modified, modified);
    assert_eq!(shown.size, PACKED_ORIGINAL);
}

#[test]
fn device_numbers_are_packed_as_the_kernel_packs_them() {
    let tree = open(Path::new("/dev"), Path::new("/"));
    let null = at_root(&tree, "null");
    assert_eq!((null.kind, null.rdev), (Kind::CharDevice, 0x103));
}

#[test]
fn two_views_of_one_file_have_two_numbers_and_a_listing_foresees_them() {
    let fixture = Fixture::new();
    fixture.write("a.warp", PACKED);
    fs::hard_link(fixture.path("a.warp"), fixture.path("b")).unwrap();
    let tree = fixture.tree();
    let decoded = at_root(&tree, "a");
    let raw = at_root(&tree, "b");
    assert_ne!(decoded.node, raw.node);
    assert_eq!(
        (decoded.size, raw.size),
        (PACKED_ORIGINAL, PACKED.len() as u64)
    );
    let listing = tree.list(NodeId::ROOT).unwrap();
    for entry in &listed(&listing)[2..] {
        let name = String::from_utf8(entry.name.to_vec()).unwrap();
        assert_eq!(entry.inode, at_root(&tree, &name).inode);
    }
}

#[test]
fn a_listing_begins_with_the_directory_and_its_parent() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("a/b")).unwrap();
    let tree = fixture.tree();
    let a = at_root(&tree, "a");
    let b = find(&tree, a.node, "b").unwrap();
    let root = tree.attributes(NodeId::ROOT).unwrap();
    assert_eq!(
        root.inode,
        fs::metadata(fixture.source.path()).unwrap().ino()
    );
    let dots = |node| {
        let listing = tree.list(node).unwrap();
        let entries = listed(&listing);
        assert_eq!((entries[0].name, entries[1].name), (&b"."[..], &b".."[..]));
        (entries[0].inode, entries[1].inode)
    };
    assert_eq!(dots(b.node), (b.inode, a.inode));
    assert_eq!(dots(a.node), (a.inode, root.inode));
    assert_eq!(dots(NodeId::ROOT), (root.inode, root.inode));
}

#[test]
fn attributes_of_listed_entries_are_those_of_a_lookup_and_count_as_one() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    fixture.write("going.warp", PACKED);
    fixture.write("plain", b"plain");
    fixture.link("l.warp", "x.warp");
    let tree = fixture.tree();
    let listing = tree.list(NodeId::ROOT).unwrap();

    fs::remove_file(fixture.path("going.warp")).unwrap();
    for (index, entry) in listed(&listing).iter().enumerate() {
        let found = tree
            .lookup_listed(&listing, index, &listing.get(index).unwrap())
            .unwrap();
        match entry.name {
            b"." | b".." => assert_eq!(found.unwrap().node, NodeId::ROOT),
            b"going" => assert_eq!(found, None),
            name => {
                let found = found.unwrap();
                assert_eq!((found.inode, found.kind), (entry.inode, entry.kind));
                let again = tree.attributes(found.node).unwrap();
                assert_eq!(lasting(again), lasting(found));
                tree.forget(found.node, 1);
                let stale = tree.attributes(found.node);
                assert_eq!(errno(stale), Some(Errno::STALE.raw_os_error()));
                let again = tree.lookup(NodeId::ROOT, name).unwrap();
                assert_eq!(again.map(lasting), Some(lasting(found)));
            }
        }
    }
    assert_eq!(listing.get(listing.len()), None);
}

#[test]
fn opening_says_whether_the_kernels_pages_are_still_right() {
    let fixture = Fixture::new();
    fixture.write("plain", b"before");
    fixture.write("x.warp", PACKED);
    let tree = fixture.tree();
    let plain = at_root(&tree, "plain").node;
    let packed = at_root(&tree, "x").node;
    let hold = |node| {
        let opened = tree.open_file(node).unwrap();
        tree.hold(node, &opened)
            .map(|right| (right, opened.identity))
    };
    for node in [plain, packed] {
        let (right, identity) = hold(node).unwrap();
        assert!(!right && !hold(node).unwrap().0);
        tree.let_go(node, identity);
        assert!(hold(node).unwrap().0);
        tree.let_go(node, identity);
        tree.let_go(node, identity);
    }
    let opened = tree.open_file(packed).unwrap();
    assert!(opened.packed && !tree.open_file(plain).unwrap().packed);
    assert_eq!(opened.path, fixture.path("x.warp"));

    fixture.write("plain", b"and after");
    assert!(!hold(plain).unwrap().0);
    assert_eq!(text(tree.open_file(plain).unwrap()), b"and after");

    // A packed file's new size has to reach the kernel before its new bytes do.
    fixture.write("x.warp", OTHER_PACKED);
    assert!(is_changed(hold(packed)));
    let again = at_root(&tree, "x");
    assert_eq!((again.node, again.size), (packed, 1));
    assert!(!hold(packed).unwrap().0);
}

#[test]
fn another_file_or_view_in_a_nodes_place_is_noticed_on_opening() {
    let fixture = Fixture::new();
    for name in [
        "replaced.warp",
        "shadowed.warp",
        "broken.warp",
        "linked.warp",
        "gone.warp",
    ] {
        fixture.write(name, PACKED);
    }
    fixture.write("becomes.warp", DAMAGED_MAGIC);
    let tree = fixture.tree();
    let node = |name| at_root(&tree, name).node;
    let [replaced, shadowed, broken, linked, gone, becomes] = [
        "replaced",
        "shadowed",
        "broken",
        "linked",
        "gone",
        "becomes.warp",
    ]
    .map(node);
    let held = tree.open_file(replaced).unwrap();

    fixture.write("new", OTHER_PACKED);
    fs::rename(fixture.path("new"), fixture.path("replaced.warp")).unwrap();
    assert!(is_changed(tree.open_file(replaced)));
    assert!(is_changed(tree.attributes(replaced)));
    assert!(is_changed(tree.description(replaced)));
    let new = at_root(&tree, "replaced");
    assert_ne!(new.node, replaced);
    assert!(tree.open_file(new.node).is_ok());
    let of_held = tree
        .attributes_of_open(
            replaced,
            &held.content,
            held.identity,
            Some(PACKED_ORIGINAL),
        )
        .unwrap();
    assert_eq!(
        (of_held.node, of_held.size, of_held.nlink),
        (replaced, PACKED_ORIGINAL, 0)
    );

    fixture.write("shadowed", b"plain");
    assert!(is_changed(tree.open_file(shadowed)));
    fixture.write("broken.warp", b"no longer");
    assert!(is_changed(tree.open_file(broken)));
    assert!(is_changed(tree.attributes(broken)));
    fixture.write("becomes.warp", PACKED);
    assert!(is_changed(tree.open_file(becomes)));
    fs::remove_file(fixture.path("linked.warp")).unwrap();
    fixture.link("linked.warp", "replaced.warp");
    assert!(is_changed(tree.open_file(linked)));
    fs::remove_file(fixture.path("gone.warp")).unwrap();
    // Not 'no such file': it may have another name, and the kernel looks it up again.
    assert!(is_changed(tree.open_file(gone)));
    assert!(is_changed(tree.attributes(gone)));
}

/// Makes a file or directory `name` whose inode number was another's, if the file system gives it one of these.
fn make_with_number(fixture: &Fixture, name: &str, number: u64, make: fn(PathBuf)) -> bool {
    let mut others = (0..200).map(|other| fixture.path(&format!("other-{name}-{other}")));
    let reused = others.find(|other| {
        make(other.clone());
        fs::metadata(other).unwrap().ino() == number
    });
    reused.is_some_and(|path| fs::rename(path, fixture.path(name)).is_ok())
}

#[test]
fn a_file_that_got_the_inode_number_of_a_removed_one_is_not_taken_for_it() {
    let fixture = Fixture::new();
    fixture.write("file", b"removed");
    fs::create_dir(fixture.path("directory")).unwrap();
    let tree = fixture.tree();
    let [file, directory] = ["file", "directory"].map(|name| at_root(&tree, name).node);
    fs::remove_file(fixture.path("file")).unwrap();
    if make_with_number(&fixture, "file", file.0, |path| {
        fs::write(path, "").unwrap()
    }) {
        assert!(is_changed(tree.attributes(file)));
        assert!(is_changed(tree.extended_attribute(
            file,
            b"user.note",
            None
        )));
        assert!(is_changed(tree.open_file(file)));
        assert_ne!(at_root(&tree, "file").node, file);
    }
    fs::remove_dir(fixture.path("directory")).unwrap();
    if make_with_number(&fixture, "directory", directory.0, |path| {
        fs::create_dir(path).unwrap();
    }) {
        assert!(is_changed(tree.check_directory(directory)));
        assert!(is_changed(tree.lookup(directory, b"any")));
        assert!(is_changed(tree.list(directory)));
        assert_ne!(at_root(&tree, "directory").node, directory);
    }
}

#[test]
fn another_directory_in_a_nodes_place_is_not_taken_for_it() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("a")).unwrap();
    let tree = fixture.tree();
    let a = at_root(&tree, "a").node;
    fs::rename(fixture.path("a"), fixture.path("kept")).unwrap();
    fs::create_dir(fixture.path("a")).unwrap();
    fixture.write("a/file", b"another's");
    assert!(is_changed(tree.lookup(a, b"file")));
    assert!(is_changed(tree.list(a)));
    fs::remove_dir_all(fixture.path("a")).unwrap();
    fixture.link("a", "kept");
    assert!(is_changed(tree.lookup(a, b"file")));
    assert!(is_changed(tree.list(a)));
    assert_eq!(at_root(&tree, "kept").node, a);
    assert_eq!(find(&tree, a, "file"), None);
}

#[test]
fn user_attributes_and_access_lists_pass_through_and_no_others() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    let flags = rustix::fs::XattrFlags::empty();
    let path = fixture.path("x.warp");
    if rustix::fs::setxattr(&path, "user.note", b"value", flags).is_err() {
        left_out("the temporary directory's file system has no extended attributes");
        return;
    }
    let trusted = rustix::fs::setxattr(&path, "trusted.note", b"hidden", flags).is_ok();
    let tree = fixture.tree();
    let node = at_root(&tree, "x").node;
    assert_eq!(
        tree.extended_attribute_names(node, None).unwrap(),
        [b"user.note"]
    );
    let value = tree.extended_attribute(node, b"user.note", None).unwrap();
    assert_eq!(value.as_deref(), Some(&b"value"[..]));
    assert_eq!(
        tree.extended_attribute(node, b"user.other", None).unwrap(),
        None
    );
    if trusted {
        assert_eq!(
            tree.extended_attribute(node, b"trusted.note", None)
                .unwrap(),
            None
        );
    }
    assert_eq!(
        tree.extended_attribute(NodeId::ROOT, b"user.note", None)
            .unwrap(),
        None
    );
    let access = tree.extended_attribute(node, b"system.posix_acl_access", None);
    assert_eq!(access.unwrap(), None);
}

#[test]
fn the_file_system_shown_is_the_sources() {
    let fixture = Fixture::new();
    let shown = fixture.tree().statfs().unwrap();
    let source = rustix::fs::statvfs(fixture.source.path()).unwrap();
    assert_eq!(
        (shown.f_fsid, shown.f_blocks),
        (source.f_fsid, source.f_blocks)
    );
}

#[test]
fn a_single_file_on_a_directory_is_all_that_shows() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    fixture.write("x", b"beside it");
    fixture.write("other", b"other");
    let tree = open(&fixture.path("x.warp"), fixture.mountpoint.path());
    assert_eq!(tree.root_kind(), Kind::Directory);
    assert_eq!(shown_names(&tree, NodeId::ROOT), ["x"]);
    let file = at_root(&tree, "x");
    assert_eq!(file.size, PACKED_ORIGINAL);
    let opened = tree.open_file(file.node).unwrap();
    assert!(opened.packed);
    assert_eq!(opened.path, fixture.path("x.warp"));
    for hidden in ["x.warp", "other", "other.warp"] {
        assert_eq!(find(&tree, NodeId::ROOT, hidden), None);
    }
    let root = tree.attributes(NodeId::ROOT).unwrap();
    assert_eq!((root.kind, root.nlink), (Kind::Directory, 2));
}

#[test]
fn a_single_file_onto_a_file_is_the_root() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    fixture.write("onto", b"");
    for onto in ["onto", "x.warp"] {
        let tree = open(&fixture.path("x.warp"), &fixture.path(onto));
        assert_eq!(tree.root_kind(), Kind::File);
        let root = tree.attributes(NodeId::ROOT).unwrap();
        assert_eq!((root.kind, root.size), (Kind::File, PACKED_ORIGINAL));
        let opened = tree.open_file(NodeId::ROOT).unwrap();
        assert!(opened.packed);
        assert_eq!(opened.path, fixture.path("x.warp"));
        assert_eq!(text(opened), PACKED);
        assert!(tree.description(NodeId::ROOT).unwrap().is_some());
        assert_eq!(
            tree.extended_attribute_names(NodeId::ROOT, None)
                .unwrap()
                .len(),
            0
        );
        let below = tree.lookup(NodeId::ROOT, b"x");
        assert_eq!(errno(below), Some(Errno::NOTDIR.raw_os_error()));
    }
}

#[test]
fn what_cannot_be_mounted_is_refused_with_what_to_do() {
    let fixture = Fixture::new();
    fixture.write("x.warp", PACKED);
    fixture.write("bad.warp", DAMAGED_MAGIC);
    fixture.write("plain", b"plain");
    let refusal = |source: &Path, mountpoint: &Path| {
        let error = try_open(source, mountpoint).unwrap_err();
        error.to_string()
    };
    let root = fixture.source.path();
    let on_file = refusal(root, &fixture.path("plain"));
    assert!(on_file.contains("give a directory"), "{on_file}");
    let plain = refusal(&fixture.path("plain"), fixture.mountpoint.path());
    assert!(plain.contains(".warp"), "{plain}");
    let bad = refusal(&fixture.path("bad.warp"), fixture.mountpoint.path());
    assert!(
        bad.contains("wrong magic") && bad.contains("bad.warp"),
        "{bad}"
    );
    let missing = refusal(&fixture.path("missing"), fixture.mountpoint.path());
    assert!(missing.contains("missing"), "{missing}");
    let nowhere = refusal(root, &fixture.path("nowhere"));
    assert!(nowhere.contains("mount point"), "{nowhere}");
}

/// A tmpfs over a directory, for as long as it lives.
struct Cover(PathBuf);

impl Cover {
    fn over(path: &Path) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        if let Err(error) = mount("tmpfs", path, "tmpfs", MountFlags::empty(), c"size=64k") {
            left_out(&format!("mounting a tmpfs takes root: {error}"));
            return None;
        }
        Some(Self(path.to_path_buf()))
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn what_the_mount_covers_inside_its_source_still_shows() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("a/inner/deep")).unwrap();
    fixture.write("a/inner/x.warp", PACKED);
    fixture.write("a/inner/deep/file", b"beneath");
    fixture.link("link", "a/inner/x.warp");
    let beneath = fs::metadata(fixture.path("a/inner")).unwrap().ino();
    let tree = open(fixture.source.path(), &fixture.path("a/inner"));
    let Some(cover) = Cover::over(&fixture.path("a/inner")) else {
        return;
    };
    fs::write(fixture.path("a/inner/above"), "of the mount").unwrap();
    let a = at_root(&tree, "a").node;
    let inner = find(&tree, a, "inner").unwrap();
    assert_eq!(inner.inode, beneath);
    assert_eq!(tree.attributes(inner.node).unwrap().inode, beneath);
    assert_eq!(shown_names(&tree, inner.node), ["deep", "x"]);
    let listing = tree.list(a).unwrap();
    let again = tree
        .lookup_listed(&listing, 2, &listing.get(2).unwrap())
        .unwrap();
    assert_eq!(again.map(lasting), Some(lasting(inner)));
    let deep = find(&tree, inner.node, "deep").unwrap();
    let file = find(&tree, deep.node, "file").unwrap();
    assert_eq!(text(tree.open_file(file.node).unwrap()), b"beneath");
    assert_eq!(target(&tree, "link"), "a/inner/x");
    assert_eq!(
        tree.extended_attribute_names(inner.node, None)
            .unwrap()
            .len(),
        0
    );
    drop(cover);
}

#[test]
fn a_tree_mounted_over_itself_shows_what_is_beneath() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("a")).unwrap();
    fixture.write("a/x.warp", PACKED);
    let tree = fixture.tree_over_itself();
    let Some(cover) = Cover::over(fixture.source.path()) else {
        return;
    };
    assert!(!fixture.path("a").exists());
    let a = at_root(&tree, "a").node;
    assert_eq!(shown_names(&tree, a), ["x"]);
    let file = find(&tree, a, "x").unwrap().node;
    assert_eq!(text(tree.open_file(file).unwrap()), PACKED);
    drop(cover);
}

#[test]
fn files_of_two_devices_have_different_numbers() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("other")).unwrap();
    let Some(cover) = Cover::over(&fixture.path("other")) else {
        return;
    };
    fixture.write("other/file", b"on tmpfs");
    let tree = fixture.tree();
    let other = at_root(&tree, "other");
    let file = find(&tree, other.node, "file").unwrap();
    for node in [other, file] {
        assert_ne!(node.inode & 1 << 63, 0);
        assert_eq!(node.node, NodeId(node.inode));
    }
    let listing = tree.list(other.node).unwrap();
    assert_eq!(listing.get(2).unwrap().inode, file.inode);
    drop(cover);
}

#[test]
fn a_listing_reads_each_header_once() {
    let fixture = Fixture::new();
    for n in 0..20 {
        fixture.write(&format!("{n}.warp"), PACKED);
    }
    let tree = fixture.tree();
    assert_eq!(tree.list(NodeId::ROOT).unwrap().len(), 22);
    let remembered = tree.memory();
    // The same length and time: only who read the bytes again would know that they are no header any more.
    for n in 0..20 {
        let path = fixture.path(&format!("{n}.warp"));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, vec![0; PACKED.len()]).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }
    for entry in &listed(&tree.list(NodeId::ROOT).unwrap())[2..] {
        assert!(!entry.name.ends_with(b".warp"));
    }
    assert_eq!(tree.memory(), remembered);
}

#[test]
fn threads_that_look_up_and_forget_leave_no_node_behind() {
    let fixture = Fixture::new();
    fs::create_dir_all(fixture.path("a/b")).unwrap();
    fixture.write("a/b/x.warp", PACKED);
    let tree = fixture.tree();
    let empty = tree.memory();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let a = at_root(&tree, "a").node;
                    let b = find(&tree, a, "b").unwrap().node;
                    let x = find(&tree, b, "x").unwrap();
                    tree.forget(a, 1);
                    tree.forget(b, 1);
                    assert_eq!(tree.attributes(x.node).unwrap().size, PACKED_ORIGINAL);
                    tree.forget(x.node, 1);
                }
            });
        }
    });
    assert_eq!(tree.memory() - tree.headers.memory(), empty);
}

#[derive(Debug, Clone)]
enum Made {
    Plain,
    Packed,
    Damaged,
    Directory,
    Link(usize, usize),
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        2 => Just(Made::Plain),
        4 => Just(Made::Packed),
        1 => Just(Made::Damaged),
        1 => Just(Made::Directory),
        4 => (0_usize..2, 0_usize..5).prop_map(|(stem, suffixes)| Made::Link(stem, suffixes)),
    ]
}

fn made_name(stem: usize, suffixes: usize) -> String {
    ["x", "y"][stem].to_owned() + &".warp".repeat(suffixes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_entry_shows_exactly_once_and_lookup_agrees_with_the_listing(
        entries in proptest::collection::btree_map((0_usize..2, 0_usize..5), made(), 0..10),
    ) {
        let fixture = Fixture::new();
        for (&(stem, suffixes), made) in &entries {
            let name = made_name(stem, suffixes);
            match made {
                Made::Plain => fixture.write(&name, b"plain"),
                Made::Packed => fixture.write(&name, PACKED),
                Made::Damaged => fixture.write(&name, DAMAGED_MAGIC),
                Made::Directory => fs::create_dir(fixture.path(&name)).unwrap(),
                Made::Link(stem, suffixes) => fixture.link(&name, made_name(*stem, *suffixes)),
            }
        }
        let tree = fixture.tree();
        let listing = tree.list(NodeId::ROOT).unwrap();
        let shown = &listed(&listing)[2..];
        prop_assert_eq!(shown.len(), entries.len());
        let names: HashSet<&[u8]> = shown.iter().map(|entry| entry.name).collect();
        prop_assert_eq!(names.len(), shown.len());
        let numbers: HashSet<u64> = shown.iter().map(|entry| entry.inode).collect();
        for (&(stem, suffixes), made) in &entries {
            let name = made_name(stem, suffixes);
            let inode = fs::symlink_metadata(fixture.path(&name)).unwrap().ino();
            prop_assert!(numbers.contains(&inode), "{} is hidden", name);
            let entry = shown.iter().find(|entry| entry.inode == inode).unwrap();
            let stripped = name.strip_suffix(".warp");
            if entry.name == name.as_bytes() {
                // Raw: not packed, or its short name is another's.
                let taken = stripped.is_some_and(|short| names.contains(short.as_bytes()));
                prop_assert!(!matches!(made, Made::Packed) || stripped.is_none() || taken);
            } else {
                prop_assert_eq!(Some(entry.name), stripped.map(str::as_bytes));
                prop_assert!(matches!(made, Made::Packed | Made::Link(..)));
            }
        }
        for entry in shown {
            let found = tree.lookup(NodeId::ROOT, entry.name).unwrap().unwrap();
            prop_assert_eq!((found.inode, found.kind), (entry.inode, entry.kind));
        }
        for (&(stem, suffixes), made) in &entries {
            if let Made::Link(target_stem, target_suffixes) = made
                && entries.contains_key(&(*target_stem, *target_suffixes))
            {
                let path = fixture.path(&made_name(stem, suffixes));
                let inode = fs::symlink_metadata(path).unwrap().ino();
                let entry = shown.iter().find(|entry| entry.inode == inode).unwrap();
                let link = tree.lookup(NodeId::ROOT, entry.name).unwrap().unwrap();
                let target = tree.read_link(link.node).unwrap();
                prop_assert!(names.contains(&*target), "{:?} dangles", target);
            }
        }
        for stem in 0..2 {
            for suffixes in 0..7 {
                let name = made_name(stem, suffixes);
                let found = tree.lookup(NodeId::ROOT, name.as_bytes()).unwrap();
                prop_assert_eq!(found.is_some(), names.contains(name.as_bytes()), "{}", name);
            }
        }
    }
}
