//! The mount's second promise: attributes, extended attributes, access, and that nothing can be written.
//! See docs/SEMANTICS.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use common::{Mounted, pack, sample, shell};
use rustix::io::Errno;

const SIZE: usize = 300_000;

/// A directory of one packed file, `x.warp`, and whatever `script` does there. Anybody may enter it.
fn source_with(script: &str) -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let original = source.path().join("original");
    fs::write(&original, sample(SIZE, 2)).unwrap();
    pack(
        &original,
        &source.path().join("x.warp"),
        &["--chunk-size", "64K"],
    );
    fs::remove_file(original).unwrap();
    shell(source.path(), script);
    source
}

/// Mounts where other users get to as well.
fn mounted_for_all(source: &Path, arguments: &[&str]) -> (tempfile::TempDir, Mounted) {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mounted = Mounted::at(
        source,
        place.path(),
        &[&["--allow-other"], arguments].concat(),
    );
    (place, mounted)
}

/// Runs a script as a user without any rights of root's.
fn as_user(user: u32, directory: &Path, script: &str) -> Output {
    Command::new("setpriv")
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args(["--clear-groups", "bash", "-c", script])
        .current_dir(directory)
        .output()
        .unwrap()
}

/// What stat tells, but for the device.
fn told(path: &Path) -> String {
    let told = fs::symlink_metadata(path).unwrap();
    format!(
        "mode {:o} owner {}:{} inode {} links {} blocks of 512: {} block size {} device {} \
         accessed {}.{:09} modified {}.{:09} changed {}.{:09}",
        told.mode(),
        told.uid(),
        told.gid(),
        told.ino(),
        told.nlink(),
        told.blocks(),
        told.blksize(),
        told.rdev(),
        told.atime(),
        told.atime_nsec(),
        told.mtime(),
        told.mtime_nsec(),
        told.ctime(),
        told.ctime_nsec(),
    )
}

#[test]
fn all_that_stat_tells_but_the_size_is_the_source_files() {
    let source = source_with(
        "chmod 6751 x.warp; chown 1234:4321 x.warp; chmod u+s,g+s x.warp
        touch -m -d '1969-07-20 20:17:40.123456789 UTC' x.warp; ln x.warp y.warp
        echo plain > plain; chmod 0 plain; touch -d '2200-02-28 23:59:59.999999999' plain
        mkdir d sticky sgid; chmod 1777 sticky; chmod 2750 sgid; ln -s x.warp l.warp; mkfifo -m 602 pipe
        mknod -m 640 device c 4 300; mkdir -p d/e/f; touch -d '1901-12-14' d",
    );
    let at = |name: &str| source.path().join(name);
    let mode = fs::metadata(at("x.warp")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o6751);
    let mounted = Mounted::new(source.path(), &[]);
    for (shown, name) in [
        ("", ""),
        ("x", "x.warp"),
        ("y", "y.warp"),
        ("plain", "plain"),
        ("d", "d"),
        ("d/e", "d/e"),
        ("sticky", "sticky"),
        ("sgid", "sgid"),
        ("pipe", "pipe"),
        ("device", "device"),
    ] {
        assert_eq!(told(&mounted.path(shown)), told(&at(name)), "{shown}");
    }
    // Following a link is what renews its access time, and to show it, it has to be followed.
    fs::read_link(at("l.warp")).unwrap();
    assert_eq!(told(&mounted.path("l")), told(&at("l.warp")));
    let x = fs::metadata(mounted.path("x")).unwrap();
    assert_eq!(x.len(), SIZE as u64);
    assert_eq!((x.mtime(), x.mtime_nsec()), (-14_182_940, 123_456_789));
    assert_eq!(x.nlink(), 2);
    // Also when asked by an open descriptor, and after reading.
    let open = fs::File::open(mounted.path("x")).unwrap();
    assert_eq!(open.metadata().unwrap().len(), SIZE as u64);
    assert_eq!(fs::read(mounted.path("x")).unwrap(), sample(SIZE, 2));
    assert_eq!(
        open.metadata().unwrap().ino(),
        fs::metadata(at("x.warp")).unwrap().ino()
    );
}

#[test]
fn ls_shows_what_a_file_holds_and_du_what_it_takes() {
    let source = source_with("mkdir d; cp x.warp d/; echo plain > d/plain");
    let mounted = Mounted::new(source.path(), &[]);
    let du = |directory: &Path, arguments: &str| {
        shell(directory, &format!("du -s {arguments} . | cut -f1"))
    };
    assert_eq!(du(&mounted.mount_point, "-B1"), du(source.path(), "-B1"));
    let apparent: u64 = du(&mounted.mount_point, "-b").trim().parse().unwrap();
    let packed: u64 = du(source.path(), "-b").trim().parse().unwrap();
    let x = fs::metadata(source.path().join("x.warp")).unwrap().len();
    assert_eq!(apparent, packed - 2 * x + 2 * SIZE as u64);
    assert!(x < SIZE as u64 / 2, "the sample does not compress");
    let listed = shell(&mounted.mount_point, "ls -ls x | awk '{print $1 * 2, $6}'");
    let blocks = fs::metadata(source.path().join("x.warp")).unwrap().blocks();
    assert_eq!(listed, format!("{blocks} {SIZE}\n"));
}

#[test]
fn the_file_systems_figures_are_the_sources() {
    let source = source_with("true");
    let mounted = Mounted::new(source.path(), &[]);
    // Others write to the same disk, so what is free may move between two looks.
    let figures = "stat -f -c '%S %s %b %c %l' .";
    assert_eq!(
        shell(&mounted.mount_point, figures),
        shell(source.path(), figures)
    );
    let free =
        |directory: &Path| -> u64 { shell(directory, "stat -f -c %a .").trim().parse().unwrap() };
    let (here, there) = (free(&mounted.mount_point), free(source.path()));
    assert!(
        here.abs_diff(there) < there / 10 + 100_000,
        "{here} {there}"
    );
}

#[test]
fn user_attributes_pass_and_those_of_the_packing_are_added() {
    let source = source_with(
        "setfattr -n user.color -v green x.warp; setfattr -n user.empty x.warp
        setfattr -n user.binary -v 0x00ff00 x.warp; setfattr -n user.large -v $(printf %03000d 7) x.warp
        setfattr -n trusted.secret -v hidden x.warp
        echo plain > plain; setfattr -n user.color -v red plain; mkdir d; setfattr -n user.color -v blue d",
    );
    let mounted = Mounted::new(source.path(), &[]);
    let shown = shell(
        &mounted.mount_point,
        "getfattr -d -m - x | grep -v large | sort",
    );
    let packed = fs::metadata(source.path().join("x.warp")).unwrap().len();
    let ratio = SIZE as f64 / packed as f64;
    let chunks = SIZE.div_ceil(64 << 10);
    let codec = shell(
        &mounted.mount_point,
        "getfattr --only-values -n user.warpfs.codec x",
    );
    assert_eq!(
        shown.trim(),
        format!(
            "# file: x\nuser.binary=0sAP8A\nuser.color=\"green\"\nuser.empty=\"\"\nuser.warpfs.checksum=\"blake3\"\n\
             user.warpfs.chunks=\"{chunks}\"\nuser.warpfs.codec=\"{codec}\"\nuser.warpfs.ratio=\"{ratio:.2}\"\n\
             user.warpfs.verified=\"xxh3\"\nuser.warpfs.version=\"2\""
        )
    );
    assert!(["lz4", "zstd", "snappy"].contains(&codec.as_str()));
    let large = shell(
        &mounted.mount_point,
        "getfattr --only-values -n user.large x",
    );
    assert_eq!(large.len(), 3000);
    for (name, color) in [("plain", "red"), ("d", "blue")] {
        let shown = shell(&mounted.mount_point, &format!("getfattr -d -m - {name}"));
        assert_eq!(
            shown.trim(),
            format!("# file: {name}\nuser.color=\"{color}\"")
        );
    }
    // The root's statistics are there for who asks, and listed for nobody.
    assert_eq!(shell(&mounted.mount_point, "getfattr -d -m - ."), "");
    assert!(
        shell(&mounted.mount_point, "getfattr -n user.warpfs.stats .")
            .contains("user.warpfs.stats")
    );
}

#[test]
fn an_attribute_that_does_not_fit_or_is_not_there_is_the_error_that_it_is_elsewhere() {
    let source = source_with("setfattr -n user.color -v green x.warp; echo plain > plain");
    let mounted = Mounted::new(source.path(), &[]);
    let x = mounted.path("x");
    for (name, length) in [("user.color", 5), ("user.warpfs.checksum", 6)] {
        assert_eq!(rustix::fs::getxattr_query(&x, name), Ok(length));
        let mut short = vec![0; length - 1];
        assert_eq!(
            rustix::fs::getxattr(&x, name, &mut short[..]),
            Err(Errno::RANGE)
        );
        let mut enough = vec![0; length];
        assert_eq!(rustix::fs::getxattr(&x, name, &mut enough[..]), Ok(length));
    }
    let length = rustix::fs::listxattr_query(&x).unwrap();
    let mut short = vec![0; length - 1];
    assert_eq!(rustix::fs::listxattr(&x, &mut short[..]), Err(Errno::RANGE));
    let mut value = [0; 64];
    for (file, name) in [
        ("x", "user.none"),
        ("x", "user.warpfs.none"),
        ("plain", "user.warpfs.codec"),
    ] {
        let absent = rustix::fs::getxattr(mounted.path(file), name, &mut value[..]);
        assert_eq!(absent, Err(Errno::NODATA), "{name} of {file}");
    }
    for (file, name) in [
        ("x", "security.selinux"),
        ("x", "trusted.secret"),
        ("plain", "security.capability"),
    ] {
        let refused = rustix::fs::getxattr(mounted.path(file), name, &mut value[..]);
        assert_eq!(refused, Err(Errno::NOTSUP), "{name} of {file}");
    }
}

#[test]
fn an_attribute_copied_from_a_mount_is_listed_once_and_tells_of_this_packing() {
    let source = source_with(
        "setfattr -n user.warpfs.codec -v brotli x.warp; setfattr -n user.warpfs.chunks -v 999 x.warp",
    );
    let mounted = Mounted::new(source.path(), &[]);
    let mut list = vec![0; 4096];
    let length = rustix::fs::listxattr(mounted.path("x"), &mut list[..]).unwrap();
    let names: Vec<_> = list[..length].split(|&byte| byte == 0).collect();
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    let shown = shell(&mounted.mount_point, "getfattr -d x");
    assert!(
        !shown.contains("brotli") && !shown.contains("999"),
        "{shown}"
    );
}

#[test]
fn a_plain_file_that_was_copied_from_a_mount_does_not_pass_for_a_packed_one() {
    let packed = source_with("");
    let mounted = Mounted::new(packed.path(), &[]);
    let source = tempfile::tempdir().unwrap();
    shell(
        source.path(),
        &format!(
            "cp --preserve=all {} copy; setfattr -n user.color -v green copy; getfattr -d copy | grep -q user.warpfs.codec",
            mounted.path("x").display()
        ),
    );
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(
        shell(&mounted.mount_point, "getfattr -d copy").trim(),
        "# file: copy\nuser.color=\"green\""
    );
    let mut value = [0; 64];
    let length = rustix::fs::listxattr(mounted.path("copy"), &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"user.color\0");
    let told = rustix::fs::getxattr(mounted.path("copy"), "user.warpfs.codec", &mut value[..]);
    assert_eq!(told, Err(Errno::NODATA));
}

#[test]
fn a_listing_with_attributes_reads_no_table() {
    let source = tempfile::tempdir().unwrap();
    fs::File::create(source.path().join("sparse"))
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    let arguments = ["--chunk-size", "4K", "--checksum", "none"];
    pack(
        &source.path().join("sparse"),
        &source.path().join("large.warp"),
        &arguments,
    );
    let table = (256 << 20) / 4096 * 16;
    let mounted = Mounted::new(source.path(), &["--ttl", "0"]);
    // All the bytes that the server has asked for with any kind of read(2).
    let read = || -> u64 {
        let counted = fs::read_to_string(format!("/proc/{}/io", mounted.server.id())).unwrap();
        let line = counted.lines().next().unwrap();
        line.strip_prefix("rchar: ").unwrap().parse().unwrap()
    };
    let before = read();
    shell(
        &mounted.mount_point,
        "ls -lR; find . -perm /1; getfacl large",
    );
    let listed = read() - before;
    assert!(listed < table / 4, "{listed} bytes were read");
    shell(&mounted.mount_point, "getfattr -d large");
    let asked = read() - before;
    assert!(asked >= table, "{asked} bytes were read");
}

#[test]
fn names_of_attributes_are_listed_without_opening_a_file_also_of_one_too_damaged_for_it() {
    let source = source_with("cp x.warp y.warp");
    let damaged = fs::OpenOptions::new()
        .write(true)
        .open(source.path().join("y.warp"))
        .unwrap();
    // In the table, behind the header of 18 bytes.
    std::os::unix::fs::FileExt::write_all_at(&damaged, &[0xff; 64], 18).unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    let list = |name: &str| {
        let mut names = vec![0; 4096];
        let length = rustix::fs::listxattr(mounted.path(name), &mut names[..]).unwrap();
        names.truncate(length);
        String::from_utf8(names).unwrap()
    };
    let six = [
        "version", "codec", "chunks", "ratio", "checksum", "verified",
    ];
    let expected: String = six.map(|name| format!("user.warpfs.{name}\0")).concat();
    assert_eq!((list("x"), list("y")), (expected.clone(), expected));
    // Opening would have said so.
    let logged = mounted.logged();
    assert!(!logged.contains("cannot be opened"), "{logged}");
    let mut value = [0; 64];
    for (name, is_told) in six.into_iter().zip([true, true, true, true, false, false]) {
        let name = format!("user.warpfs.{name}");
        assert!(rustix::fs::getxattr(mounted.path("x"), &name, &mut value[..]).is_ok());
        let told = rustix::fs::getxattr(mounted.path("y"), &name, &mut value[..]);
        match is_told {
            true => assert!(told.is_ok(), "{name}"),
            false => assert_eq!(told, Err(Errno::NODATA), "{name}"),
        }
    }
    assert!(mounted.logged().contains("cannot be opened"));
}

#[test]
fn set_user_id_is_shown_and_does_nothing() {
    let source = tempfile::tempdir().unwrap();
    let at = |name: &str| source.path().join(name);
    shell(source.path(), "cp \"$(command -v id)\" id");
    pack(&at("id"), &at("packed-id.warp"), &[]);
    shell(
        source.path(),
        "chown nobody id packed-id.warp; chmod 6755 id packed-id.warp",
    );
    let in_source = shell(source.path(), "./id -un");
    assert_eq!(
        in_source, "nobody\n",
        "the source's file system has to honour it for this test"
    );
    let mounted = Mounted::new(source.path(), &[]);
    for name in ["id", "packed-id"] {
        let mode = fs::metadata(mounted.path(name)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o6755, "{name}");
        let effective = shell(&mounted.mount_point, &format!("./{name} -un"));
        assert_eq!(effective, "root\n", "{name}");
    }
}

#[test]
fn devices_are_shown_and_cannot_be_opened() {
    let source = source_with("mknod -m 666 zero c 1 5");
    let mounted = Mounted::new(source.path(), &[]);
    assert!(fs::File::open(source.path().join("zero")).is_ok());
    let refused = fs::File::open(mounted.path("zero")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
}

#[test]
fn modes_and_access_lists_keep_out_whom_they_keep_out_in_the_source() {
    // User 65001 is named by the lists, 65002 is a stranger. A list's mask takes the place of the group's bits.
    let source = source_with(
        "echo plain > plain
        for name in x.warp plain; do
            for kind in private named masked denied open; do cp -p $name $kind.$name; done
            chmod 600 private.$name
            chmod 600 named.$name; setfacl -m u:65001:r named.$name
            chmod 600 masked.$name; setfacl -m u:65001:rw,m::- masked.$name
            chmod 644 denied.$name; setfacl -m u:65001:- denied.$name
            chown :65002 denied.$name; chmod 644 open.$name
        done
        chgrp 65002 named.*
        mkdir closed listed; chmod 700 closed listed; setfacl -m u:65001:rx listed
        cp x.warp closed/; cp x.warp listed/; chmod 644 */x.warp; rm x.warp plain",
    );
    let (_place, mounted) = mounted_for_all(source.path(), &[]);
    let names = [
        ("private", "private.plain", "private.x", "private.x.warp"),
        ("named", "named.plain", "named.x", "named.x.warp"),
        ("masked", "masked.plain", "masked.x", "masked.x.warp"),
        ("denied", "denied.plain", "denied.x", "denied.x.warp"),
        ("open", "open.plain", "open.x", "open.x.warp"),
        ("closed", "closed/x", "closed/x", "closed/x.warp"),
        ("listed", "listed/x", "listed/x", "listed/x.warp"),
    ];
    let may = |user, directory: &Path, name: &str| {
        as_user(user, directory, &format!("cat {name}"))
            .status
            .success()
    };
    for (kind, plain, packed, source_name) in names {
        for user in [65001, 65002] {
            let in_source = may(user, source.path(), source_name);
            let expected = match (kind, user) {
                ("open", _) | ("named" | "listed", 65001) | ("denied", 65002) => true,
                (..) => false,
            };
            assert_eq!(in_source, expected, "{kind} for {user} in the source");
            assert_eq!(
                may(user, &mounted.mount_point, plain),
                expected,
                "{plain} for {user}"
            );
            assert_eq!(
                may(user, &mounted.mount_point, packed),
                expected,
                "{packed} for {user}"
            );
        }
    }
    // The group's bits look like the mask, which would let this group in.
    let mode = fs::metadata(mounted.path("named.x")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o640);
    for (shown, name) in [
        ("named.x", "named.x.warp"),
        ("named.plain", "named.plain"),
        ("listed", "listed"),
    ] {
        let list =
            |directory: &Path, name: &str| shell(directory, &format!("getfacl -c -n {name}"));
        assert_eq!(list(&mounted.mount_point, shown), list(source.path(), name));
    }
}

/// Every way of writing that a program has, as root; each prints its errno's name.
const WRITES: &str = r#"
import errno, os
flags = dict(WRONLY=os.O_WRONLY, RDWR=os.O_RDWR, TRUNC=os.O_RDONLY | os.O_TRUNC, APPEND=os.O_WRONLY | os.O_APPEND,
    CREAT=os.O_RDONLY | os.O_CREAT, EXCL=os.O_WRONLY | os.O_CREAT | os.O_EXCL, TMPFILE=os.O_RDWR | os.O_TMPFILE)
def refuse():
    raise OSError(errno.EROFS, "")
writes = {}
for file in ("x", "plain"):
    for name in ("WRONLY", "RDWR", "TRUNC", "APPEND"):
        writes[f"open {name} {file}"] = lambda file=file, name=name: os.open(file, flags[name])
    writes.update({
        f"truncate {file}": lambda file=file: os.truncate(file, 0),
        f"unlink {file}": lambda file=file: os.unlink(file),
        f"rename {file}": lambda file=file: os.rename(file, "new"),
        f"rename onto {file}": lambda file=file: os.rename("l", file),
        f"link {file}": lambda file=file: os.link(file, "new"),
        f"chmod {file}": lambda file=file: os.chmod(file, 0o600),
        f"chown {file}": lambda file=file: os.chown(file, 1, 1),
        f"utimes {file}": lambda file=file: os.utime(file, (1, 1)),
        f"utimes now {file}": lambda file=file: os.utime(file),
        f"setxattr {file}": lambda file=file: os.setxattr(file, "user.color", b"red"),
        f"setxattr of ours {file}": lambda file=file: os.setxattr(file, "user.warpfs.codec", b"red"),
        f"removexattr {file}": lambda file=file: os.removexattr(file, "user.color"),
        f"access {file}": lambda file=file: os.access(file, os.W_OK) or refuse(),
    })
writes.update({
    "create": lambda: os.open("new", flags["CREAT"]),
    "create exclusively": lambda: os.open("new", flags["EXCL"]),
    "create a raw name": lambda: os.open("x.warp", flags["EXCL"]),
    "a temporary file": lambda: os.open(".", flags["TMPFILE"]),
    "mkdir": lambda: os.mkdir("new"),
    "rmdir": lambda: os.rmdir("d"),
    "mkfifo": lambda: os.mkfifo("new"),
    "mknod": lambda: os.mknod("new"),
    "symlink": lambda: os.symlink("x", "new"),
    "unlink a link": lambda: os.unlink("l"),
    "chmod the root": lambda: os.chmod(".", 0o700),
    "chmod a directory": lambda: os.chmod("d", 0o700),
    "lchown a link": lambda: os.chown("l", 1, 1, follow_symlinks=False),
    "set an access list": lambda: os.setxattr("x", "system.posix_acl_access", os.getxattr("x", "system.posix_acl_access")),
})
for name, write in writes.items():
    try:
        write()
        print(name, "done")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"#;

#[test]
fn whatever_writes_is_told_that_the_file_system_is_read_only() {
    let source = source_with(
        "echo plain > plain; setfattr -n user.color -v red plain x.warp; mkdir d; ln -s x.warp l.warp
        setfacl -m u:65001:r x.warp",
    );
    let state = "find . -printf '%p %i %m %U %s %T@ %C@ %l\\n' | sort; getfattr -R -d .; getfacl -R .; sha256sum x.warp plain";
    let before = shell(source.path(), state);
    let mounted = Mounted::new(source.path(), &["-o", "ro"]);
    let script = mounted.log.with_file_name("writes.py");
    fs::write(&script, WRITES).unwrap();
    let run = || {
        shell(
            &mounted.mount_point,
            &format!("python3 {}", script.display()),
        )
    };
    let told = run();
    assert!(told.lines().count() > 40, "{told}");
    assert!(told.lines().all(|line| line.ends_with(" EROFS")), "{told}");

    // The administrator may call it writable: it is not.
    let mount_point = mounted.mount_point.display();
    shell(
        Path::new("/"),
        &format!("mount -i -o remount,rw {mount_point}"),
    );
    for line in run().lines() {
        // To ask is not to write; and temporary files without a name, no FUSE file system need have.
        if !line.starts_with("access") && !line.starts_with("a temporary file") {
            assert!(line.ends_with(" EROFS"), "{line}");
        }
    }
    drop(mounted);
    assert_eq!(shell(source.path(), state), before);
}

#[test]
fn a_link_has_the_length_of_the_target_it_shows() {
    let source = source_with("true");
    symlink("x.warp", source.path().join("l.warp")).unwrap();
    let mounted = Mounted::new(source.path(), &[]);
    assert_eq!(fs::symlink_metadata(mounted.path("l")).unwrap().len(), 1);
    assert_eq!(fs::read_link(mounted.path("l")).unwrap(), Path::new("x"));
    assert_eq!(fs::metadata(mounted.path("l")).unwrap().len(), SIZE as u64);
}
