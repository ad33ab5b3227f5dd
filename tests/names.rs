//! The mount's first promise: which names it shows, and what is behind them. See docs/SEMANTICS.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Stdio;

use common::{Mounted, pack, sample, shell, vector, wait_until, warpfs};
use rustix::fs::{FileType, RawDir, SeekFrom};

/// What most packed files here hold.
fn original() -> Vec<u8> {
    sample(150_000, 1)
}

/// Packs [`original`] to `name` in `directory`, under any name.
fn packed(directory: &Path, name: impl AsRef<OsStr>) {
    let own = tempfile::tempdir().unwrap();
    let input = own.path().join("original");
    let output = own.path().join("packed");
    fs::write(&input, original()).unwrap();
    pack(&input, &output, &["--chunk-size", "64K"]);
    fs::copy(output, directory.join(name.as_ref())).unwrap();
}

/// The shown names, sorted.
fn names(directory: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_vec())
        .collect();
    names.sort();
    names
}

/// The same as text.
fn texts(directory: &Path) -> Vec<String> {
    let names = names(directory).into_iter();
    names.map(|name| String::from_utf8(name).unwrap()).collect()
}

fn target(path: impl AsRef<Path>) -> String {
    let target = fs::read_link(path).unwrap();
    target.into_os_string().into_string().unwrap()
}

/// An entry as getdents64 gives it.
struct Entry {
    name: Vec<u8>,
    kind: FileType,
    inode: u64,
    /// Where the entries behind this one begin.
    cookie: u64,
}

/// Reads on in an open directory, to its end or until there are `enough` entries or more.
fn read_entries(directory: impl AsFd, enough: usize) -> Vec<Entry> {
    let mut buffer = Vec::with_capacity(4096);
    let mut raw = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut entries = Vec::new();
    while entries.len() < enough || !raw.is_buffer_empty() {
        let Some(entry) = raw.next() else { break };
        let entry = entry.unwrap();
        entries.push(Entry {
            name: entry.file_name().to_bytes().to_vec(),
            kind: entry.file_type(),
            inode: entry.ino(),
            cookie: entry.next_entry_cookie(),
        });
    }
    entries
}

#[test]
fn a_packed_file_shows_as_its_original_without_the_suffix() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "x.warp");
    fs::create_dir_all(source.path().join("deep/er")).unwrap();
    packed(&source.path().join("deep/er"), "y.tar.warp");
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(texts(&mounted.mount_point), ["deep", "x"]);
    assert_eq!(fs::metadata(mounted.path("x")).unwrap().len(), 150_000);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    assert_eq!(fs::read(mounted.path("deep/er/y.tar")).unwrap(), original());
    // Each shows once: its own name leads nowhere.
    assert!(!mounted.path("x.warp").exists());
    assert!(!mounted.path("deep/er/y.tar.warp").exists());
}

#[test]
fn everything_else_shows_as_it_is() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    packed(source.path(), "not suffixed");
    packed(source.path(), "x.WARP");
    packed(source.path(), "x.warp~");
    packed(source.path(), ".warp");
    fs::write(at("plain"), "plain").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("text.warp"), "text").unwrap();
    fs::write(at("empty.warp"), "").unwrap();
    fs::create_dir(at("d.warp")).unwrap();
    packed(&at("d.warp"), "inside.warp");
    shell(
        source.path(),
        "mkfifo pipe pipe.warp; mknod null c 1 3; mknod whiteout c 0 0; mknod block.warp b 7 200
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'",
    );
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(names(&mounted.mount_point), names(source.path()));
    for name in [
        "not suffixed",
        "x.WARP",
        "x.warp~",
        ".warp",
        "plain",
        "empty",
        "text.warp",
        "empty.warp",
    ] {
        assert_eq!(
            fs::read(mounted.path(name)).unwrap(),
            fs::read(at(name)).unwrap(),
            "{name}"
        );
    }
    for name in [
        "pipe",
        "pipe.warp",
        "null",
        "whiteout",
        "block.warp",
        "socket",
        "d.warp",
    ] {
        let shown = fs::symlink_metadata(mounted.path(name)).unwrap();
        let original = fs::symlink_metadata(at(name)).unwrap();
        assert_eq!(shown.file_type(), original.file_type(), "{name}");
        assert_eq!(shown.rdev(), original.rdev(), "{name}");
    }
    assert!(
        fs::symlink_metadata(mounted.path("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(texts(&mounted.path("d.warp")), ["inside"]);
    assert_eq!(fs::read(mounted.path("d.warp/inside")).unwrap(), original());
}

#[test]
fn a_plain_file_keeps_its_name_and_the_packed_one_beside_it_shows_raw() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    packed(source.path(), "x.warp");
    fs::write(at("x"), "plain").unwrap();
    // Whatever has the name keeps it.
    packed(source.path(), "d.warp");
    fs::create_dir(at("d")).unwrap();
    packed(source.path(), "l.warp");
    symlink("nowhere", at("l")).unwrap();
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    assert_eq!(
        texts(&mounted.mount_point),
        ["d", "d.warp", "l", "l.warp", "x", "x.warp"]
    );
    assert_eq!(fs::read(mounted.path("x")).unwrap(), b"plain");
    assert_eq!(
        fs::read(mounted.path("x.warp")).unwrap(),
        fs::read(at("x.warp")).unwrap()
    );
    assert!(fs::metadata(mounted.path("d")).unwrap().is_dir());
    assert_eq!(target(mounted.path("l")), "nowhere");

    // The name is free again, and taken again.
    fs::remove_file(at("x")).unwrap();
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
    assert!(!mounted.path("x.warp").exists());
    fs::write(at("x"), "again").unwrap();
    assert_eq!(fs::read(mounted.path("x")).unwrap(), b"again");
    assert_eq!(
        fs::read(mounted.path("x.warp")).unwrap(),
        fs::read(at("x.warp")).unwrap()
    );
}

#[test]
fn of_files_packed_twice_one_suffix_is_taken_off() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "x.warp");
    packed(source.path(), "x.warp.warp");
    packed(source.path(), "y.warp.warp");
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(texts(&mounted.mount_point), ["x", "x.warp", "y.warp"]);
    for name in ["x", "x.warp", "y.warp"] {
        assert_eq!(fs::read(mounted.path(name)).unwrap(), original(), "{name}");
    }
}

#[test]
fn a_warp_that_is_none_shows_raw_and_the_log_says_why_once() {
    let source = tempfile::tempdir().unwrap();
    for name in ["bad-magic", "bad-version", "bad-codec", "bad-short-header"] {
        let name = format!("{name}.warp");
        fs::copy(vector(&name), source.path().join(&name)).unwrap();
    }
    fs::write(source.path().join("text.warp"), "text").unwrap();
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    for _ in 0..3 {
        let shown = shell(&mounted.mount_point, "ls -l; cat -- * | wc -c; stat *");
        assert!(shown.contains("bad-magic.warp"), "{shown}");
    }
    let log = mounted.logged();
    for (name, reason) in [
        ("bad-magic.warp", "not a .warp file: wrong magic"),
        ("bad-version.warp", "unsupported version"),
        ("bad-codec.warp", "unknown codec"),
        ("bad-short-header.warp", "file ends inside"),
        ("text.warp", "not a .warp file: wrong magic"),
    ] {
        let about: Vec<_> = log.lines().filter(|line| line.contains(name)).collect();
        assert_eq!(about.len(), 1, "{log}");
        assert!(about[0].contains(reason), "{log}");
    }
    for entry in fs::read_dir(source.path()).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(
            fs::read(mounted.path(&name)).unwrap(),
            fs::read(source.path().join(&name)).unwrap()
        );
    }
}

#[test]
fn damage_behind_the_header_is_an_error_under_the_short_name() {
    let source = tempfile::tempdir().unwrap();
    for name in ["bad-original-size", "bad-payload"] {
        fs::copy(
            vector(&format!("{name}.warp")),
            source.path().join(format!("{name}.warp")),
        )
        .unwrap();
    }
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(
        texts(&mounted.mount_point),
        ["bad-original-size", "bad-payload"]
    );
    let refused = File::open(mounted.path("bad-original-size")).unwrap_err();
    assert_eq!(
        refused.raw_os_error(),
        Some(rustix::io::Errno::IO.raw_os_error())
    );
    // It opens; the chunk that is damaged is found when it is read.
    File::open(mounted.path("bad-payload")).unwrap();
    assert!(fs::read(mounted.path("bad-payload")).is_err());
}

#[test]
fn a_header_that_claims_more_than_a_file_can_hold_can_still_be_listed() {
    let source = tempfile::tempdir().unwrap();
    for (name, size) in [("most.warp", u64::MAX), ("over.warp", 1 << 63)] {
        let mut bytes = b"PRAW\x02\x01".to_vec();
        bytes.extend(size.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend([0; 16]);
        fs::write(source.path().join(name), bytes).unwrap();
    }
    let mounted = Mounted::new(source.path(), &[]);
    for name in ["most", "over"] {
        let shown = fs::symlink_metadata(mounted.path(name)).unwrap();
        assert_eq!(shown.len(), i64::MAX as u64, "{name}");
        let refused = File::open(mounted.path(name)).unwrap_err();
        assert_eq!(
            refused.raw_os_error(),
            Some(rustix::io::Errno::IO.raw_os_error())
        );
    }
    shell(&mounted.mount_point, "ls -l");
}

#[test]
fn links_lead_to_what_shows() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    packed(source.path(), "x.warp");
    packed(source.path(), "both.warp");
    fs::write(at("both"), "plain").unwrap();
    fs::write(at("raw.warp"), "raw").unwrap();
    fs::create_dir_all(at("d.warp/e")).unwrap();
    packed(&at("d.warp"), "y.warp");
    let outside = tempfile::tempdir().unwrap();
    packed(outside.path(), "z.warp");
    let outside = outside.path().join("z.warp").to_str().unwrap().to_owned();
    let inside_source = at("x.warp").to_str().unwrap().to_owned();
    // Name and target in the source, and as they are to show.
    let links = [
        ("l.warp", "x.warp", "l", "x"),
        ("no suffix", "x.warp", "no suffix", "x"),
        ("through.warp", "d.warp/y.warp", "through", "d.warp/y"),
        ("d.warp/e/up.warp", "../../x.warp", "d.warp/e/up", "../../x"),
        ("around.warp", "d.warp/../x.warp", "around", "d.warp/../x"),
        ("chain.warp", "l.warp", "chain", "l"),
        ("taken.warp", "x.warp", "taken.warp", "x"),
        ("collides.warp", "both.warp", "collides.warp", "both.warp"),
        ("to raw.warp", "raw.warp", "to raw.warp", "raw.warp"),
        ("to dir.warp", "d.warp", "to dir.warp", "d.warp"),
        ("dangling.warp", "gone.warp", "dangling.warp", "gone.warp"),
        ("loop.warp", "loop.warp", "loop.warp", "loop.warp"),
        ("out.warp", &outside, "out.warp", &outside),
        // Past the mount, where the suffix is still there.
        ("past.warp", &inside_source, "past.warp", &inside_source),
        ("plain", "both", "plain", "both"),
    ];
    for (name, target, ..) in links {
        symlink(target, at(name)).unwrap();
    }
    fs::write(at("taken"), "taken").unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    for (name, source_target, shown_name, shown_target) in links {
        assert_eq!(target(mounted.path(shown_name)), shown_target, "{name}");
        let shown = fs::symlink_metadata(mounted.path(shown_name)).unwrap();
        assert_eq!(shown.len(), shown_target.len() as u64, "{name}");
        if name != shown_name {
            assert!(fs::symlink_metadata(mounted.path(name)).is_err(), "{name}");
        }
        // A link that leads somewhere still does, and if its target is shown unpacked, so does the link.
        let led = at(name).exists();
        assert_eq!(mounted.path(shown_name).exists(), led, "{name}");
        if shown_target != source_target {
            assert_eq!(
                fs::read(mounted.path(shown_name)).unwrap(),
                original(),
                "{name}"
            );
        }
    }
    let mut expected: Vec<_> = links.iter().map(|link| link.2).collect();
    expected.retain(|name| !name.contains('/'));
    expected.extend(["x", "both", "both.warp", "raw.warp", "d.warp", "taken"]);
    expected.sort_unstable();
    assert_eq!(texts(&mounted.mount_point), expected);
}

#[test]
fn an_absolute_link_into_the_mount_point_leads_to_what_shows() {
    let source = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir().unwrap();
    let mount_point = place.path().join("here");
    fs::create_dir(&mount_point).unwrap();
    packed(source.path(), "x.warp");
    symlink(mount_point.join("x.warp"), source.path().join("l.warp")).unwrap();
    let mounted = Mounted::at(source.path(), &mount_point, &[]);
    assert_eq!(
        target(mounted.path("l")),
        mount_point.join("x").to_str().unwrap()
    );
    assert_eq!(fs::read(mounted.path("l")).unwrap(), original());
}

#[test]
fn names_are_bytes() {
    let source = tempfile::tempdir().unwrap();
    let stems: [&[u8]; 7] = [
        b"\xff\xfe not utf-8 \x80",
        b"new\nline",
        b" blanks\tand tabs ",
        b"\\back, slash",
        b"-rf",
        "e\u{301}\u{e9}".as_bytes(),
        &[b'n'; 250],
    ];
    for stem in stems {
        packed(source.path(), OsStr::from_bytes(&[stem, b".warp"].concat()));
    }
    // The longest there is, and one whose name with a suffix would be too long.
    for name in [vec![b'p'; 255], vec![b'q'; 251]] {
        fs::write(source.path().join(OsStr::from_bytes(&name)), "plain").unwrap();
    }
    let mounted = Mounted::new(source.path(), &[]);
    let mut expected: Vec<_> = stems.iter().map(|stem| stem.to_vec()).collect();
    expected.extend([vec![b'p'; 255], vec![b'q'; 251]]);
    expected.sort();
    assert_eq!(names(&mounted.mount_point), expected);
    for stem in stems {
        let path = mounted.path(OsStr::from_bytes(stem));
        assert_eq!(fs::read(path).unwrap(), original(), "{stem:?}");
    }
    for length in [251, 255, 256, 1000] {
        let asked = fs::metadata(mounted.path("r".repeat(length))).unwrap_err();
        let expected = fs::metadata(source.path().join("r".repeat(length))).unwrap_err();
        assert_eq!(asked.raw_os_error(), expected.raw_os_error(), "{length}");
    }
}

/// Serves a file system with one file and one directory, whose names are longer than those of the system's own: as of FAT and
/// NTFS, which count characters.
const LONG_NAMES: &str = r"
import ctypes, os, struct, sys
names = [(3, 0o100444, b'f' * 700), (4, 0o040555, b'd' * 700)]
device = os.open('/dev/fuse', os.O_RDWR)
options = f'fd={device},rootmode=40000,user_id=0,group_id=0,allow_other'
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b'long', sys.argv[1].encode(), b'fuse', 1, options.encode()) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
print(flush=True)
def attributes(node):
    mode = next((mode for number, mode, _ in names if number == node), 0o040555)
    return struct.pack('=6Q3I7I', node, 4 if node == 3 else 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def answer(opcode, node, body):
    if opcode == 26:
        return struct.pack('=4I2H2I2H', 7, 31, 65536, 0, 12, 9, 4096, 1, 1, 0) + bytes(32)
    if opcode == 3:
        return struct.pack('=QII', 0, 0, 0) + attributes(node)
    if opcode == 1:
        asked = body.rstrip(b'\0')
        found = next((number for number, _, name in names if node == 1 and name == asked), None)
        return found and struct.pack('=4Q2I', found, 0, 0, 0, 0, 0) + attributes(found)
    if opcode in (14, 27):
        return bytes(16)
    if opcode == 28:
        offset = struct.unpack_from('=Q', body, 8)[0]
        told = enumerate(names if node == 1 else [], 1)
        entries = [(struct.pack('=2Q2I', number, at, len(name), mode >> 12) + name, at) for at, (number, mode, name) in told]
        return b''.join(entry + bytes(-len(entry) % 8) for entry, at in entries if at > offset)
    if opcode == 15:
        return b'long'[struct.unpack_from('=Q', body, 8)[0]:]
    if opcode == 17:
        return struct.pack('=5Q4I', 1, 0, 0, 2, 0, 4096, 255, 4096, 0) + bytes(24)
    return b'' if opcode in (18, 29, 25) else 38
while True:
    try:
        request = os.read(device, 1 << 20)
    except OSError:
        break
    _, opcode, unique, node = struct.unpack_from('=IIQQ', request)
    if opcode in (2, 42, 36):
        continue
    told = answer(opcode, node, request[40:])
    error = 2 if told is None else told if isinstance(told, int) else 0
    body = told if error == 0 else b''
    os.write(device, struct.pack('=IiQ', 16 + len(body), -error, unique) + body)
";

/// That file system, mounted.
struct LongNames {
    own: tempfile::TempDir,
    server: std::process::Child,
}

impl LongNames {
    fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut python = std::process::Command::new("python3");
        python.args(["-c", LONG_NAMES]).arg(own.path());
        let server = python.stdout(Stdio::piped()).spawn().unwrap();
        let mut this = Self { own, server };
        let said = this.server.stdout.as_mut().unwrap();
        said.read_exact(&mut [0]).unwrap();
        this
    }
}

impl Drop for LongNames {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(self.own.path(), flags);
        let _ = self.server.wait();
    }
}

#[test]
fn names_longer_than_255_bytes_are_found_where_the_source_has_them() {
    let source = LongNames::new();
    let mounted = Mounted::new(source.own.path(), &[]);
    let [directory, file] = ["d", "f"].map(|letter| letter.repeat(700));
    assert_eq!(texts(&mounted.mount_point), [&*directory, &*file]);
    assert_eq!(fs::read(mounted.path(file)).unwrap(), b"long");
    assert_eq!(fs::read_dir(mounted.path(directory)).unwrap().count(), 0);
}

#[test]
fn no_file_shows_as_a_dot() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "..warp");
    packed(source.path(), "...warp");
    packed(source.path(), "....warp");
    let mounted = Mounted::new(source.path(), &[]);
    let listed = read_entries(File::open(&mounted.mount_point).unwrap(), usize::MAX);
    let mut listed: Vec<_> = listed
        .into_iter()
        .map(|entry| String::from_utf8(entry.name).unwrap())
        .collect();
    listed.sort();
    assert_eq!(listed, [".", "..", "...", "...warp", "..warp"]);
    assert_eq!(
        fs::read(mounted.path("..warp")).unwrap(),
        fs::read(source.path().join("..warp")).unwrap()
    );
    assert_eq!(fs::read(mounted.path("...")).unwrap(), original());
}

#[test]
fn the_temporary_file_of_a_running_pack_shows_as_a_plain_file() {
    let source = tempfile::tempdir().unwrap();
    let target = source.path().join("x.warp");
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    let mut packing = warpfs()
        .args(["pack", "-q", "--chunk-size", "64K", "--codec", "lz4", "-o"])
        .arg(&target)
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = packing.stdin.take().unwrap();
    pipe.write_all(&original()).unwrap();
    pipe.flush().unwrap();
    wait_until("the temporary file", || {
        !names(&mounted.mount_point).is_empty()
    });
    let shown = texts(&mounted.mount_point);
    assert_eq!(shown, texts(source.path()));
    for name in &shown {
        assert!(
            !name.ends_with(".warp") && name.starts_with(".x.warp."),
            "{name}"
        );
        assert!(fs::metadata(mounted.path(name)).unwrap().is_file());
    }
    assert!(!mounted.path("x").exists());
    drop(pipe);
    assert!(packing.wait().unwrap().success());
    assert_eq!(texts(&mounted.mount_point), ["x"]);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());
}

#[test]
fn a_listing_tells_what_stat_tells() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "x.warp");
    fs::create_dir_all(source.path().join("d/below")).unwrap();
    fs::write(source.path().join("d/plain"), "plain").unwrap();
    symlink("../x.warp", source.path().join("d/l.warp")).unwrap();
    packed(&source.path().join("d"), "y.warp");
    shell(source.path(), "mkfifo pipe");
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    for directory in ["", "d", "d/below"] {
        let path = mounted.path(directory);
        let open = File::open(&path).unwrap();
        // The first time with attributes (READDIRPLUS), then without unless they were asked for.
        for _ in 0..3 {
            rustix::fs::seek(&open, SeekFrom::Start(0)).unwrap();
            let entries = read_entries(&open, usize::MAX);
            assert_eq!(entries[0].name, b".");
            assert_eq!(entries[1].name, b"..");
            for entry in entries {
                if directory.is_empty() && entry.name == b".." {
                    continue;
                }
                let shown =
                    fs::symlink_metadata(path.join(OsStr::from_bytes(&entry.name))).unwrap();
                let name = String::from_utf8_lossy(&entry.name);
                assert_eq!(entry.inode, shown.ino(), "{name} in '{directory}'");
                assert_eq!(entry.kind, FileType::from_raw_mode(shown.mode()), "{name}");
            }
        }
    }
    for name in ["", "d", "d/below", "d/plain", "pipe"] {
        assert_eq!(
            fs::symlink_metadata(mounted.path(name)).unwrap().ino(),
            fs::symlink_metadata(source.path().join(name))
                .unwrap()
                .ino(),
            "{name}"
        );
    }
}

#[test]
fn a_listing_can_be_left_and_gone_on_with_at_any_entry() {
    let source = tempfile::tempdir().unwrap();
    for number in 0..500 {
        fs::write(source.path().join(format!("file number {number}")), "").unwrap();
    }
    let mounted = Mounted::new(source.path(), &[]);
    let open = File::open(&mounted.mount_point).unwrap();
    let all = read_entries(&open, usize::MAX);
    assert_eq!(all.len(), 502);
    let distinct: BTreeSet<_> = all.iter().map(|entry| &entry.name).collect();
    assert_eq!(distinct.len(), 502);
    // Behind each entry come the same ones, whatever was read before.
    for index in [0, 1, 2, 77, 78, 499, 500, 501, 3] {
        rustix::fs::seek(&open, SeekFrom::Start(all[index].cookie)).unwrap();
        let rest = read_entries(&open, usize::MAX);
        let rest: Vec<_> = rest.iter().map(|entry| &entry.name).collect();
        let expected: Vec<_> = all[index + 1..].iter().map(|entry| &entry.name).collect();
        assert_eq!(rest, expected, "behind entry {index}");
    }
    // From the beginning it is listed anew.
    fs::write(source.path().join("new"), "").unwrap();
    rustix::fs::seek(&open, SeekFrom::Start(0)).unwrap();
    assert_eq!(read_entries(&open, usize::MAX).len(), 503);
}

#[test]
fn an_interrupted_listing_of_a_large_directory_misses_and_repeats_nothing() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "packed");
    let file = source.path().join("packed");
    for number in 0..20_000 {
        let suffix = if number % 2 == 0 { ".warp" } else { "" };
        let name = source.path().join(format!("{number:05}{suffix}"));
        if number % 100 == 0 {
            fs::copy(&file, name).unwrap();
        } else {
            File::create(name).unwrap();
        }
    }
    fs::remove_file(&file).unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    let open = File::open(&mounted.mount_point).unwrap();
    let mut seen = BTreeMap::new();
    let mut take = |entries: Vec<Entry>| {
        let count = entries.len();
        for entry in entries {
            *seen.entry(entry.name).or_insert(0) += 1;
        }
        count
    };
    take(read_entries(&open, 1_000));
    // Meanwhile somebody else lists it from the beginning, and entries go and come.
    assert_eq!(names(&mounted.mount_point).len(), 20_000);
    for number in (1..20_000).step_by(2) {
        fs::remove_file(source.path().join(format!("{number:05}"))).unwrap();
    }
    fs::write(source.path().join("come"), "").unwrap();
    while take(read_entries(&open, 3_000)) > 0 {}
    assert!(seen.values().all(|&times| times == 1));
    for number in (0..20_000).step_by(2) {
        let suffix = if number % 100 == 0 { "" } else { ".warp" };
        let name = format!("{number:05}{suffix}");
        assert!(seen.contains_key(name.as_bytes()), "{name} is missing");
    }
    assert_eq!(names(&mounted.mount_point).len(), 10_001);
}

#[test]
fn a_directory_is_kept_as_it_was_listed_where_the_kernel_may_believe_for_ever() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "x.warp");
    fs::write(source.path().join("plain"), "plain").unwrap();
    let mut mounted = Mounted::new(source.path(), &["--ttl", "forever"]);
    let come = source.path().join("come");
    // Once at least: the kernel may be short of memory, or others may drop its caches.
    wait_until("a directory is listed as before", || {
        let _ = fs::remove_file(&come);
        mounted = Mounted::new(source.path(), &["--ttl", "forever"]);
        let before = names(&mounted.mount_point);
        assert_eq!(before.len(), 2);
        fs::write(&come, "come").unwrap();
        names(&mounted.mount_point) == before
    });
    // Nobody has asked for it, so nobody was told that there is none.
    assert_eq!(fs::read(mounted.path("come")).unwrap(), b"come");
    assert_eq!(fs::read(mounted.path("x")).unwrap(), original());

    mounted.drop_caches();
    assert_eq!(names(&mounted.mount_point).len(), 3);
}

#[test]
fn a_kept_directory_is_of_one_moment_whoever_has_begun_to_list_it() {
    let source = tempfile::tempdir().unwrap();
    for number in 0..5_000 {
        File::create(source.path().join(format!("{number:04}"))).unwrap();
    }
    let mounted = Mounted::new(source.path(), &["--ttl", "forever"]);
    let all = |entries: Vec<Entry>| -> BTreeMap<Vec<u8>, usize> {
        let mut seen = BTreeMap::new();
        for entry in entries {
            *seen.entry(entry.name).or_insert(0) += 1;
        }
        seen
    };
    let to_the_end = |open: &File| {
        let mut entries = Vec::new();
        loop {
            match read_entries(open, 1_000) {
                more if more.is_empty() => return entries,
                more => entries.extend(more),
            }
        }
    };
    // One begins and stays, another comes, and what they list changes under them.
    let first = File::open(&mounted.mount_point).unwrap();
    let mut of_first = read_entries(&first, 1_000);
    for number in (0..5_000).step_by(2) {
        fs::remove_file(source.path().join(format!("{number:04}"))).unwrap();
    }
    let second = File::open(&mounted.mount_point).unwrap();
    let mut of_second = read_entries(&second, 2_000);
    of_first.extend(to_the_end(&first));
    of_second.extend(to_the_end(&second));
    for seen in [all(of_first), all(of_second)] {
        assert_eq!(seen.len(), 5_002, "with . and ..");
        assert!(seen.values().all(|&times| times == 1));
    }

    // One begins and goes; whoever comes next has the directory as it is then.
    let mounted = Mounted::new(source.path(), &["--ttl", "forever"]);
    let left = File::open(&mounted.mount_point).unwrap();
    assert!(!read_entries(&left, 1_000).is_empty());
    drop(left);
    for number in (1..5_000).step_by(4) {
        fs::remove_file(source.path().join(format!("{number:04}"))).unwrap();
    }
    for _ in 0..3 {
        let open = File::open(&mounted.mount_point).unwrap();
        let seen = all(to_the_end(&open));
        assert_eq!(seen.len(), 1_252);
        assert!(seen.values().all(|&times| times == 1));
    }
}

#[test]
fn listing_a_directory_leaves_no_access_time() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    shell(source.path(), "touch -a -d '2001-01-01' d");
    let mounted = Mounted::new(source.path(), &[]);
    shell(&mounted.mount_point, "ls -laR");
    let accessed = shell(source.path(), "stat -c %x d | cut -c1-10");
    assert_eq!(accessed, "2001-01-01\n");
}

#[test]
fn nothing_in_the_source_is_written() {
    let source = tempfile::tempdir().unwrap();
    packed(source.path(), "x.warp");
    fs::write(source.path().join("plain"), "plain").unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    let sums = "sha256sum x.warp plain";
    let sums_before = shell(source.path(), sums);
    // An access time that any reading would renew.
    shell(source.path(), "touch -a -d '2001-01-01' x.warp plain d");
    let state = "find . -printf '%p %i %m %s %T@ %C@\\n' | sort";
    let before = shell(source.path(), state);
    let mounted = Mounted::new(source.path(), &[]);
    shell(&mounted.mount_point, "ls -laR; stat x plain d");
    // Looking at names opens packed files, but nobody has read them.
    let accessed = shell(source.path(), "stat -c %x x.warp plain | cut -c1-10");
    assert_eq!(accessed, "2001-01-01\n2001-01-01\n");
    shell(
        &mounted.mount_point,
        "cat x plain > /dev/null; getfattr -d x plain",
    );
    drop(mounted);
    assert_eq!(shell(source.path(), state), before);
    assert_eq!(shell(source.path(), sums), sums_before);
}
