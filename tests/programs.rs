//! Ordinary programs on a mount do what they do on the originals. See docs/SEMANTICS.md.
//!
//! One tree is packed and mounted for all tests: text, a program, a database, a disk image, an archive, a sparse file, links,
//! and files too small to be packed, which show as they are.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::{Mounted, Random, run, sample, shell};

/// A tree, and a mount of the same tree packed.
struct Trees {
    own: tempfile::TempDir,
    mounted: Mounted,
}

/// Makes files of every kind that the programs here work on.
fn make_originals(tree: &Path) {
    let at = |name: &str| tree.join(name);
    fs::create_dir_all(at("text/deeper")).unwrap();
    for number in 0..20 {
        let mut text = sample(10_000 * (number as usize + 1), number);
        for byte in &mut text {
            if !byte.is_ascii_lowercase() {
                *byte = b' ';
            }
        }
        text.extend(format!("\nneedle number {number}\n").bytes());
        let directory = if number % 2 == 0 {
            "text"
        } else {
            "text/deeper"
        };
        fs::write(at(directory).join(format!("{number}.txt")), text).unwrap();
    }
    let mut random = Random(5);
    let noise: Vec<u8> = (0..50_000)
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    fs::write(at("noise"), noise).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("tiny"), "tiny\n").unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    for island in [0, 20 << 20, (50 << 20) + 4096] {
        sparse
            .write_all_at(&sample(100_000, island), island)
            .unwrap();
    }
    shell(
        tree,
        "cp \"$(command -v ls)\" program; chmod 755 program
        sqlite3 base.sqlite 'create table t(n integer primary key, words text);
            with recursive c(n) as (select 1 union all select n + 1 from c where n < 20000)
            insert into t select n, printf(\"row %d of many, many rows\", n) from c; create index i on t(words);'
        mkdir image.d; cp -r text image.d/; echo inside > image.d/file
        truncate -s 32M image.ext4; mkfs.ext4 -q -d image.d -E lazy_itable_init=0 image.ext4; rm -r image.d
        tar -cf archive.tar text noise tiny
        ln -s text/0.txt link; ln -s text links; ln -s image.ext4 'link with blanks'
        chmod 600 tiny; touch -d '2003-02-01 04:05:06.789' text/0.txt noise tiny; touch -h -d 2004-01-01 link
        touch -d 2002-01-01 text/deeper text",
    );
}

/// The trees that the tests running at the same time share; they go when the last one is done.
fn trees() -> Arc<Trees> {
    static SHARED: Mutex<Weak<Trees>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let trees = Arc::new(Trees::new());
        *shared = Arc::downgrade(&trees);
        trees
    })
}

impl Trees {
    fn new() -> Self {
        let own = tempfile::tempdir().unwrap();
        // Where another user may follow.
        fs::set_permissions(own.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let original = own.path().join("original");
        fs::create_dir(&original).unwrap();
        make_originals(&original);
        let packed = own.path().join("packed");
        run(["pack", "-q", "-r", "--chunk-size", "128K", "-o"]
            .map(PathBuf::from)
            .into_iter()
            .chain([packed.clone(), original]));
        let names = shell(&packed, "find . -name '*.warp' | wc -l");
        assert!(
            names.trim().parse::<u32>().unwrap() >= 24,
            "hardly anything was packed"
        );
        assert!(
            packed.join("noise").exists(),
            "noise was packed; nothing shows as it is"
        );
        let mounted = Mounted::new(&packed, &[]);
        Self { own, mounted }
    }

    fn original(&self) -> PathBuf {
        self.own.path().join("original")
    }

    /// Runs a script in the original tree and in the mount, and demands that both print the same.
    fn agree(&self, script: &str) -> String {
        let expected = shell(&self.original(), script);
        let shown = shell(&self.mounted.mount_point, script);
        assert_eq!(shown, expected, "{script}");
        assert!(
            !shown.is_empty(),
            "{script} printed nothing, which shows nothing"
        );
        shown
    }

    fn elsewhere(&self) -> tempfile::TempDir {
        tempfile::tempdir_in(self.own.path()).unwrap()
    }
}

#[test]
fn grep_and_find() {
    let trees = trees();
    let found = trees.agree("grep -r 'needle number' . | sort");
    let text = found.lines().filter(|line| line.starts_with("./text/"));
    assert_eq!(text.count(), 20);
    trees.agree("grep -rlZ needle . | sort -z | tr '\\0' '\\n'");
    // What a directory itself takes is the file system's business.
    trees.agree("find . -printf '%p %y %m %u %g %n %l\\n' | sort");
    trees.agree("find . -type f -printf '%p %s %T@\\n' | sort");
    trees.agree("find . -type f -size +100k -newermt 2003-01-01 ! -newermt 2003-12-31 | sort");
    trees.agree("find -L . -type f | sort; test -x program; test ! -x tiny || true");
}

#[test]
fn sha256sum_and_cmp() {
    let trees = trees();
    trees.agree("find . -type f -print0 | sort -z | xargs -0 sha256sum");
    trees.mounted.drop_caches();
    trees.agree("find . -type f -print0 | sort -z | xargs -0 -P 4 -n 1 sha256sum | sort");
    let original = trees.original();
    shell(
        &trees.mounted.mount_point,
        &format!("diff -r . {}", original.display()),
    );
}

#[test]
fn tar() {
    let trees = trees();
    trees.agree("tar -tvf archive.tar");
    trees.agree("tar -xOf archive.tar text/deeper/19.txt | md5sum");
    // And of the mount itself, links and modes included.
    let order = "--sort=name --exclude=./lost+found";
    trees.agree(&format!("tar {order} -cf - . | tar -tvf - | grep -v '/$'"));
    let unpacked = trees.elsewhere();
    shell(
        &trees.mounted.mount_point,
        &format!("tar -cSf - . | tar -xf - -C {}", unpacked.path().display()),
    );
    shell(
        unpacked.path(),
        &format!("diff -r --no-dereference . {}", trees.original().display()),
    );
}

#[test]
fn sqlite3() {
    let trees = trees();
    let base = |query: &str| format!("sqlite3 'file:base.sqlite?immutable=1' '{query}'");
    assert_eq!(trees.agree(&base("pragma integrity_check")), "ok\n");
    trees.agree(&base("select count(*), sum(length(words)) from t"));
    trees.agree(&base(
        "select * from t where words = \"row 12345 of many, many rows\"",
    ));
    // Also opened as if it could be written, with its locks.
    assert_eq!(
        trees.agree("sqlite3 base.sqlite 'pragma integrity_check'"),
        "ok\n"
    );
    assert_eq!(trees.agree("sqlite3 -readonly base.sqlite 'pragma mmap_size = 10000000; pragma integrity_check'").lines().last(), Some("ok"));
}

#[test]
fn cp_keeps_holes() {
    let trees = trees();
    let copies = trees.elsewhere();
    for how in ["auto", "always"] {
        let copy = copies.path().join(how);
        shell(
            &trees.mounted.mount_point,
            &format!("cp --sparse={how} sparse {}", copy.display()),
        );
        shell(
            copies.path(),
            &format!("cmp {how} {}", trees.original().join("sparse").display()),
        );
        let blocks = fs::metadata(&copy).unwrap().blocks();
        assert!(blocks * 512 < 4 << 20, "{how}: {blocks} blocks");
    }
    // Everything, as it is.
    shell(
        &trees.mounted.mount_point,
        &format!("cp -a . {}/all", copies.path().display()),
    );
    shell(
        copies.path(),
        &format!(
            "diff -r --no-dereference all {}",
            trees.original().display()
        ),
    );
    let times = "find . -type f -o -type l | sort | xargs -d '\\n' stat -c '%n %a %Y'";
    assert_eq!(
        shell(&copies.path().join("all"), times),
        shell(&trees.original(), times)
    );
}

#[test]
fn holes_are_where_they_were() {
    let trees = trees();
    let script = "python3 -c '
import os
file = os.open(\"sparse\", os.O_RDONLY)
end = os.lseek(file, 0, os.SEEK_END)
at, data = 0, 0
while True:
    try: begin = os.lseek(file, at, os.SEEK_DATA)
    except OSError: break
    at = os.lseek(file, begin, os.SEEK_HOLE)
    data += at - begin
print(end, data)'";
    let told = shell(&trees.mounted.mount_point, script);
    let (end, data) = told.trim().split_once(' ').unwrap();
    assert_eq!(end, (64 << 20).to_string());
    // Holes are whole chunks.
    let data: u64 = data.parse().unwrap();
    assert!((300_000..=8 * (128 << 10)).contains(&data), "{data}");
}

#[test]
fn python_mmap() {
    let trees = trees();
    let script = "python3 -c '
import hashlib, mmap, random, sys
for name in [\"base.sqlite\", \"text/18.txt\", \"sparse\", \"noise\", \"program\"]:
    with open(name, \"rb\") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        random.seed(7)
        pieces = hashlib.md5()
        for _ in range(300):
            start = random.randrange(len(mapped))
            pieces.update(mapped[start:start + random.randrange(20000)])
        print(name, len(mapped), pieces.hexdigest(), hashlib.md5(mapped).hexdigest(), mapped.find(b\"needle\"))
    with open(name, \"rb\") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[0:4] = b\"mine\"
        print(hashlib.md5(mapped).hexdigest())'";
    trees.agree(script);
    trees.mounted.drop_caches();
    trees.agree(script);
}

#[test]
fn a_loop_mount_of_a_packed_image() {
    let trees = trees();
    let place = trees.elsewhere();
    let image = trees.mounted.path("image.ext4");
    shell(
        Path::new("/"),
        &format!("e2fsck -fn {} 2>&1", image.display()),
    );
    shell(
        place.path(),
        &format!(
            "mkdir here; mount -o loop,ro,noload {} here",
            image.display()
        ),
    );
    let compared = Command::new("diff")
        .arg("-r")
        .arg(place.path().join("here/text"))
        .arg(trees.original().join("text"))
        .status();
    let read = fs::read_to_string(place.path().join("here/file"));
    shell(place.path(), "umount here");
    assert!(compared.unwrap().success());
    assert_eq!(read.unwrap(), "inside\n");
}

#[test]
fn executing_a_packed_program() {
    let trees = trees();
    trees.mounted.drop_caches();
    trees.agree("./program -1");
    // Several at once, and through a link.
    trees.agree("for n in 1 2 3 4; do ./program text/deeper & done | sort; wait");
    trees.agree("cd links; ../program ..");
}

#[test]
fn du_counts_what_is_used_or_what_is_shown() {
    let trees = trees();
    trees.agree("find . -type f -print0 | sort -z | du --apparent-size -B1 --files0-from=-");
    let du = |directory: &Path, arguments: &str| -> u64 {
        let told = shell(directory, &format!("du -s {arguments} text | cut -f1"));
        told.trim().parse().unwrap()
    };
    let packed = trees.own.path().join("packed");
    let shown = &trees.mounted.mount_point;
    assert_eq!(du(shown, "-B1"), du(&packed, "-B1"));
    assert!(du(shown, "-B1") < du(&trees.original(), "-B1"));
    assert!(du(shown, "-b") > du(shown, "-B1"));
}

#[test]
fn head_tail_and_dd() {
    let trees = trees();
    for name in ["text/18.txt", "base.sqlite", "noise", "tiny", "sparse"] {
        trees.agree(&format!("tail -c 5000 {name} | md5sum; tail -c +777 {name} | md5sum; head -c 70001 {name} | md5sum"));
        trees.agree(&format!("tail -n 2 {name} | md5sum; wc -c {name}"));
        trees.agree(&format!(
            "dd if={name} bs=1000 skip=3 count=57 status=none | md5sum"
        ));
        // Past the page cache, to an end that is in the middle of a block.
        trees.agree(&format!(
            "dd if={name} bs=64K iflag=direct status=none | md5sum"
        ));
        trees.agree(&format!(
            "dd if={name} bs=4K skip=5 count=9 iflag=direct status=none | md5sum"
        ));
    }
    trees.agree("split -b 100000 --filter=md5sum base.sqlite");
}

#[test]
fn rsync_finds_no_difference() {
    let trees = trees();
    let shown = trees.mounted.mount_point.display();
    for (from, to) in [
        (shown.to_string(), trees.original().display().to_string()),
        (trees.original().display().to_string(), shown.to_string()),
    ] {
        let differs = shell(
            Path::new("/"),
            &format!("rsync -n -c -a -i -H --delete {from}/ {to}/"),
        );
        assert_eq!(differs, "");
    }
    // And would find one.
    let copies = trees.elsewhere();
    fs::write(copies.path().join("tiny"), "TINY\n").unwrap();
    let differs = shell(
        copies.path(),
        &format!("rsync -n -c -i tiny {shown}/text/0.txt {shown}/"),
    );
    assert!(
        differs.contains("fc") && differs.contains("tiny"),
        "{differs}"
    );
    let copies = trees.elsewhere();
    shell(
        Path::new("/"),
        &format!("rsync -aHAX --sparse {shown}/ {}/", copies.path().display()),
    );
    let found = shell(copies.path(), "sha256sum base.sqlite sparse text/*.txt");
    assert_eq!(
        found,
        shell(&trees.original(), "sha256sum base.sqlite sparse text/*.txt")
    );
}

#[test]
fn plain_files_are_read_as_they_are_with_and_without_the_kernels_help() {
    let trees = trees();
    let script = "md5sum noise tiny empty; tail -c 9 noise | md5sum; dd if=noise bs=8K iflag=direct status=none | md5sum
        python3 -c 'import mmap, os, zlib; f = os.open(\"noise\", 0); print(zlib.crc32(mmap.mmap(f, 0, prot=mmap.PROT_READ)[5:99999]))'
        exec 3< noise 4< noise; head -c 70000 <&3 | md5sum; head -c 5 <&4 | md5sum";
    trees.agree(script);
    let lower = trees.own.path().join("packed");
    let helped = Mounted::new(&lower, &[]);
    let read = || helped.stats()["bytes_read"].as_u64().unwrap();
    shell(&helped.mount_point, script);
    assert_eq!(read(), 0, "the kernel reads plain files by itself");
    shell(&helped.mount_point, "md5sum program");
    assert!(read() > 0);
    drop(helped);

    // A source that is stacked itself is not for the kernel to read: then it is read by requests.
    let stacked = trees.elsewhere();
    let at = |name: &str| stacked.path().join(name);
    for name in ["upper", "work", "merged"] {
        fs::create_dir(at(name)).unwrap();
    }
    shell(
        stacked.path(),
        &format!(
            "mount -t overlay overlay -o lowerdir={},upperdir=upper,workdir=work merged",
            lower.display()
        ),
    );
    {
        let over = Mounted::new(&at("merged"), &[]);
        let compared = Command::new("bash")
            .args(["-c", script])
            .current_dir(&over.mount_point)
            .output()
            .unwrap();
        let expected = shell(&trees.original(), script);
        drop(over);
        shell(stacked.path(), "umount merged");
        assert_eq!(String::from_utf8_lossy(&compared.stdout), expected);
    }
}

#[test]
fn an_overlay_on_top_of_a_mount_can_be_written() {
    let trees = trees();
    let stacked = trees.elsewhere();
    let shown = trees.mounted.mount_point.display();
    shell(
        stacked.path(),
        &format!(
            "mkdir upper work merged; mount -t overlay overlay -o lowerdir={shown},upperdir=upper,workdir=work merged"
        ),
    );
    let outcome = Command::new("bash")
        .args(["-euc", "cd merged; echo more >> text/2.txt; echo more >> tiny; rm noise; mv text/deeper moved 2>&1 || cp -r text/deeper moved; chmod 640 program; md5sum text/2.txt tiny base.sqlite moved/1.txt; ls"])
        .current_dir(stacked.path())
        .output();
    shell(stacked.path(), "umount merged");
    let outcome = outcome.unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(
        outcome.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&outcome.stderr)
    );
    let expected = shell(
        &trees.original(),
        "(cat text/2.txt; echo more) | md5sum | cut -c1-32; (cat tiny; echo more) | md5sum | cut -c1-32; md5sum base.sqlite | cut -c1-32; md5sum text/deeper/1.txt | cut -c1-32",
    );
    let sums: Vec<_> = said.lines().take(4).map(|line| &line[..32]).collect();
    assert_eq!(sums, expected.lines().collect::<Vec<_>>());
    trees.agree("find . -type f -print0 | sort -z | xargs -0 sha256sum");
}
