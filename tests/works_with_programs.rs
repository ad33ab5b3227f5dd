//! Programs that want more of a file than to be read from its front work on what a mount shows. Each test is a row of
//! docs/WORKS_WITH.md; more of its rows are in tests/programs.rs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::shown::Shown;
use common::{sample, shell, wait_until};

fn bash(directory: &Path, script: &str) -> Output {
    Command::new("bash")
        .args(["-c", script])
        .current_dir(directory)
        .output()
        .unwrap()
}

#[test]
fn git_reads_clones_and_borrows_from_a_packed_repository() {
    // Without a configuration of whoever runs this.
    let git = "export HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a \
        GIT_COMMITTER_EMAIL=a@b GIT_AUTHOR_DATE='2003-02-01 00:00:00 +0000' GIT_COMMITTER_DATE='2003-02-01 00:00:00 +0000'
        ";
    let shown = Shown::new(
        &format!(
            "{git}git init -q -b main work; cd work
            for n in $(seq 30); do seq $n 3000 > $n.txt; git add .; git commit -q -m \"commit $n\"; done; git tag v1
            cd ..; git clone -q --bare work repo.git; git -C repo.git gc -q; rm -r work
            git -C repo.git multi-pack-index write"
        ),
        &[],
    );
    let loose = shell(
        &shown.packed("repo.git"),
        "ls objects/pack; ls hooks | head -n 3",
    );
    assert!(loose.contains(".idx") && loose.contains(".warp"), "{loose}");
    let agree = |script: &str| shown.agree(&format!("{git}{script}"));
    assert_eq!(
        agree("git --git-dir repo.git log --oneline")
            .lines()
            .count(),
        30
    );
    agree("git --git-dir repo.git fsck --full 2>&1 || echo failed; echo $?");
    agree(
        "git --git-dir repo.git show v1:30.txt | sha256sum; git --git-dir repo.git grep -c 2999 v1",
    );
    agree(
        "git --git-dir repo.git verify-pack -s repo.git/objects/pack/*.idx; git --git-dir repo.git cat-file --batch-check --batch-all-objects",
    );
    agree("git --git-dir repo.git archive v1 | sha256sum");
    let at = shown.path("repo.git").display().to_string();
    let here = shown.elsewhere();
    let told = shell(
        &here,
        &format!(
            "{git}git clone -q {at} copied; git clone -q -s {at} borrowed; git clone -q file://{at} sent
            for clone in copied borrowed sent; do git -C $clone log --oneline | wc -l; sha256sum $clone/30.txt | cut -c1-8; done
            test ! -e borrowed/.git/objects/pack/*.pack
            cd borrowed; echo more > more.txt; git add .; git commit -q -m more; git fsck 2>&1 | grep -c missing || true; git log --oneline | wc -l"
        ),
    );
    let sum = shell(&here, "sha256sum copied/30.txt | cut -c1-8");
    assert_eq!(told, format!("{0}{0}{0}0\n31\n", format!("30\n{sum}")));
    // What would write to it is refused and says why.
    let push = bash(
        &here.join("borrowed"),
        &format!("{git}git push -q origin HEAD"),
    );
    assert!(!push.status.success());
    let gc = bash(&here, &format!("{git}git --git-dir {at} gc"));
    assert!(String::from_utf8_lossy(&gc.stderr).contains("Read-only file system"));
}

#[test]
fn git_wants_a_repository_of_another_owner_to_be_called_safe_as_anywhere() {
    let shown = Shown::new(
        "export HOME=/nonexistent; git init -q --bare repo.git; chown -R 1:1 repo.git",
        &[],
    );
    let at = shown.path("repo.git");
    let git = |options: &str| {
        let script = format!(
            "unset SUDO_UID; HOME={} git {options} -C {} rev-parse --git-dir",
            shown.elsewhere().display(),
            at.display()
        );
        bash(Path::new("/"), &script)
    };
    let refused = git("");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("dubious ownership"));
    let home = shown.elsewhere();
    shell(
        &home,
        &format!(
            "export HOME={}; git config --global --add safe.directory {at}; git -C {at} rev-parse --git-dir",
            home.display(),
            at = at.display()
        ),
    );
}

#[test]
fn a_sqlite_database_with_a_write_ahead_log_is_read_as_immutable() {
    let shown = Shown::new(
        "sqlite3 wal.sqlite 'pragma journal_mode=wal; create table t(n integer primary key, words text);
            with recursive c(n) as (select 1 union all select n + 1 from c where n < 20000)
            insert into t select n, printf(\"row %d of many, many rows\", n) from c;' > /dev/null
        test ! -e wal.sqlite-wal",
        &[],
    );
    shown.is_packed(["wal.sqlite"]);
    let told = shown.agree(
        "sqlite3 'file:wal.sqlite?immutable=1' 'pragma mmap_size = 100000000; pragma integrity_check; select sum(n) from t'",
    );
    assert!(told.ends_with("ok\n200010000\n"), "{told}");
    // Without it SQLite wants to make the log's index beside it.
    let refused = bash(
        &shown.mounted.mount_point,
        "sqlite3 wal.sqlite 'select sum(n) from t'",
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("unable to open database file"),
        "{said}"
    );
    // A log that was left behind is another reason to use an overlay or a copy: its index would have to be written.
    shown.python(
        "
import sqlite3
base = sqlite3.connect('file:wal.sqlite?mode=ro&immutable=1', uri=True)
assert base.execute('select words from t where n = 12345').fetchone() == ('row 12345 of many, many rows',)
try: base.execute('delete from t')
except sqlite3.OperationalError as error: assert 'readonly' in str(error), error
else: assert False, 'written'
",
    );
}

/// A packed raw disk image, with data and holes.
fn with_image() -> Shown {
    let shown = Shown::made(
        |originals| {
            fs::write(originals.join("image"), sample(8 << 20, 1)).unwrap();
            shell(
                originals,
                "truncate -s 24M image; printf END | dd of=image bs=1 seek=25000000 conv=notrunc status=none",
            );
        },
        &[],
    );
    shown.is_packed(["image"]);
    shown
}

#[test]
fn qemu_img_compares_converts_and_backs_a_writable_disk() {
    let shown = with_image();
    let here = shown.elsewhere();
    let (at, original) = (shown.path("image"), shown.original("image"));
    let told = shell(
        &here,
        &format!(
            "qemu-img info -f raw {at} | grep -c 'file format: raw'
            qemu-img compare -f raw -F raw {at} {original}
            qemu-img convert -f raw -O qcow2 {at} converted.qcow2; qemu-img compare -f qcow2 -F raw converted.qcow2 {original}
            qemu-img create -q -f qcow2 -b {at} -F raw over.qcow2; qemu-img compare -f qcow2 -F raw over.qcow2 {original}
            qemu-io -f qcow2 -c 'write -P 7 1M 64k' -c 'read -P 7 1M 64k' -c 'write -P 9 23M 64k' over.qcow2 > io
            qemu-io -f qcow2 -c 'read -P 7 1M 64k' -c 'read -P 9 23M 64k' -c 'read -P 0 20M 64k' over.qcow2 > io
            qemu-img check -q over.qcow2; qemu-img compare -f qcow2 -F raw over.qcow2 {original} || echo changed
            qemu-img map -f raw --output=json {at} | grep -c '\"zero\": true'",
            at = at.display(),
            original = original.display()
        ),
    );
    assert_eq!(
        told.lines()
            .filter(|line| *line == "Images are identical.")
            .count(),
        3,
        "{told}"
    );
    assert!(
        told.contains("changed") && !told.ends_with("\n0\n"),
        "{told}"
    );
    // The backing file is what it was.
    shell(
        &here,
        &format!("cmp {} {}", at.display(), original.display()),
    );
    let refused = bash(
        &here,
        &format!("qemu-io -f raw -c 'write 0 512' {}", at.display()),
    );
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only file system"));
}

#[test]
fn a_virtual_machines_ways_to_read_a_disk_past_the_page_cache() {
    let shown = with_image();
    let here = shown.elsewhere();
    fs::write(here.join("pattern"), vec![0xAB; 4 << 20]).unwrap();
    let pattern = Shown::new(
        &format!("cp {} pattern", here.join("pattern").display()),
        &[],
    );
    // O_DIRECT with threads, Linux' own asynchronous I/O, and io_uring.
    for how in ["threads", "native", "io_uring"] {
        let output = bash(
            &pattern.mounted.mount_point,
            &format!(
                "qemu-io -r -n -i {how} -f raw -c 'aio_read -P 0xab 0 1M' -c 'aio_read -P 0xab 3M 1M' -c aio_flush -c 'read -P 0xab 512 8192' pattern"
            ),
        );
        let told = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.status.success() && told.matches("read ").count() >= 3,
            "{how}: {told}"
        );
        assert!(
            !told.contains("failed") && !told.contains("rror"),
            "{how}: {told}"
        );
    }
    // And it can tell a wrong byte.
    let output = bash(
        &shown.mounted.mount_point,
        "qemu-io -r -n -f raw -c 'read -P 0xab 0 4096' image",
    );
    assert!(String::from_utf8_lossy(&output.stdout).contains("verification failed"));
}

#[test]
fn a_packed_squashfs_image_is_listed_and_mounted() {
    let shown = Shown::new(
        "mkdir tree; seq 100000 > tree/numbers; seq 7 > tree/few; ln -s few tree/link
        mksquashfs tree image.squashfs -quiet -no-progress -noI -noD -noF -noX > /dev/null; rm -r tree",
        &[],
    );
    shown.is_packed(["image.squashfs"]);
    shown.agree("unsquashfs -ll image.squashfs | tail -n 4; unsquashfs -cat image.squashfs numbers | sha256sum");
    if !fs::read_to_string("/proc/filesystems")
        .unwrap()
        .contains("squashfs")
    {
        common::left_out("the kernel does not mount squashfs");
        return;
    }
    let here = shown.elsewhere();
    let told = bash(
        &here,
        &format!(
            "mkdir on; mount -o loop,ro -t squashfs {} on && trap 'umount on' EXIT; tail -n 1 on/numbers; cat on/link | wc -l",
            shown.path("image.squashfs").display()
        ),
    );
    assert_eq!(String::from_utf8_lossy(&told.stdout), "100000\n7\n");
}

#[test]
fn flac_encodes_a_packed_recording_and_seeks_in_a_packed_stream() {
    let shown = Shown::new(
        "python3 -c '
import math, struct, wave
with wave.open(\"take.wav\", \"wb\") as file:
    file.setnchannels(2); file.setsampwidth(2); file.setframerate(44100)
    file.writeframes(b\"\".join(struct.pack(\"<hh\", int(900 * math.sin(n / 50)), 100 * (n // 4410 % 9)) for n in range(44100 * 20)))'
        flac -s -0 -o take.flac take.wav; head -c 3000000 take.wav > cut.wav",
        &[],
    );
    shown.is_packed(["take.wav"]);
    shown.agree("flac -s -t take.flac && echo whole; flac -s -d -c --skip=0:13.5 --until=0:14.2 take.flac | sha256sum");
    shown.agree("flac -s -8 -c --skip=0:5 take.wav | sha256sum; metaflac --show-total-samples --show-md5sum take.flac");
    shown.python(
        "import wave
with wave.open('take.wav') as file:
    file.setpos(400000)
    assert file.readframes(1000) == original('take.wav')[44 + 1600000:44 + 1604000]",
    );
}

#[test]
fn zip_and_tar_archives_are_listed_and_read_in_parts() {
    let shown = Shown::new(
        "mkdir tree; for n in $(seq 40); do seq $n 9000 > tree/$n; done
        zip -q -r -0 stored.zip tree; zip -q -r deflated.zip tree; tar -cf tree.tar tree; rm -r tree",
        &[],
    );
    shown.is_packed(["stored.zip", "tree.tar"]);
    shown.agree("unzip -l stored.zip; unzip -l deflated.zip; unzip -tq stored.zip; unzip -p stored.zip tree/33 | sha256sum");
    shown.agree("zip -T stored.zip -TT 'unzip -tqq' 2>&1 || true; zipinfo -t deflated.zip");
    shown.agree("python3 -c '
import tarfile, zipfile
print(zipfile.ZipFile(\"stored.zip\").read(\"tree/7\")[-5:], len(tarfile.open(\"tree.tar\").extractfile(\"tree/7\").read()))'");
    shown.agree("tar -tvf tree.tar --occurrence=1 tree/20; tar -xOf tree.tar tree/40 | tail -n 1");
}

#[test]
fn incremental_backups_take_what_is_new() {
    let shown = Shown::new(
        "mkdir d; seq 50000 > d/one; seq 60000 > d/two",
        &["--ttl", "0"],
    );
    let here = shown.elsewhere();
    let back_up = |to: &str| {
        let at = shown.mounted.mount_point.display();
        shell(
            &here,
            &format!(
                "tar --listed-incremental=state -C {at} -cf {to} d; tar -tf {to} | grep -v '/$' | sort"
            ),
        )
    };
    assert_eq!(back_up("full.tar"), "d/one\nd/two\n");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    shell(&here, "seq 70000 > three");
    common::pack(&here.join("three"), &shown.packed("d/three.warp"), &[]);
    shell(&here, "touch stamp");
    shell(&shown.packed("d"), "touch -d '1 minute' one.warp");
    assert_eq!(back_up("next.tar"), "d/one\nd/three\n");
    let restored = shell(
        &here,
        "mkdir back; cd back; tar --listed-incremental=/dev/null -xf ../full.tar; tar --listed-incremental=/dev/null -xf ../next.tar
        seq 50000 | cmp - d/one; seq 60000 | cmp - d/two; seq 70000 | cmp - d/three; tail -q -n 1 d/*",
    );
    assert_eq!(restored, "50000\n70000\n60000\n");
    // And by times alone.
    assert_eq!(
        shown.shell(&format!("find . -newer {}/stamp -type f", here.display())),
        "./d/one\n"
    );
}

#[test]
fn pagers_and_editors_open_what_they_cannot_write() {
    let shown = Shown::new("seq 100000 > numbers", &[]);
    shown.is_packed(["numbers"]);
    let here = shown.elsewhere();
    let told = shown.shell(
        "{ sleep 0.5; printf q; } | TERM=vt100 LESSHISTFILE=- script -qec 'stty rows 20 cols 80; less +G numbers' /dev/null | tr -d '\\r' | grep -c '^100000'",
    );
    assert_eq!(told, "1\n");
    // The swap file lies elsewhere; what was edited is saved under another name.
    let edit = format!(
        "vim.tiny -u NONE -e -s -c 'set directory=.,{0}' -c '77777s/.*/changed/' -c 'w {0}/edited' -c 'q!' numbers",
        here.display()
    );
    shown.shell(&edit);
    assert_eq!(
        shell(
            &here,
            "sed -n '77776,77778p' edited; seq 100000 | sed '77777s/.*/changed/' | cmp - edited; wc -l < edited"
        ),
        "77776\nchanged\n77778\n100000\n"
    );
    let refused = bash(
        &shown.mounted.mount_point,
        "vim.tiny -u NONE -e -s -c '1s/.*/changed/' -c 'w!' -c 'q!' numbers; head -n 1 numbers; ls -A",
    );
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "1\nnumbers\n");
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn web_servers_serve_it_also_in_ranges() {
    let shown = Shown::new("seq 500000 > numbers", &[]);
    shown.is_packed(["numbers"]);
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    for (ranges, words) in [
        (true, ["busybox", "httpd", "-f", "-h", "."].as_slice()),
        (
            false,
            &["python3", "-m", "http.server", "--bind", "127.0.0.1"],
        ),
    ] {
        let port = free();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        match ranges {
            true => command.args(["-p", &address]),
            false => command.arg(port.to_string()),
        };
        let _server = Server(
            command
                .current_dir(&shown.mounted.mount_point)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        wait_until("the web server", || {
            std::net::TcpStream::connect(&address).is_ok()
        });
        let get = |options: &str| {
            shown.shell(&format!(
                "curl -sf --noproxy '*' {options} http://{address}/numbers | sha256sum"
            ))
        };
        assert_eq!(get(""), shell(&shown.original(""), "sha256sum < numbers"));
        if ranges {
            assert_eq!(
                get("-r 1000000-1999999"),
                shell(
                    &shown.original(""),
                    "head -c 2000000 numbers | tail -c 1000000 | sha256sum"
                )
            );
        }
    }
}

#[test]
fn busyboxs_own_tools_agree() {
    let shown = Shown::new(
        "mkdir d; for n in $(seq 9); do seq $n 20000 > d/$n; done; tar -cf d.tar d; ln -s d/9 link; seq 9 | gzip > small.gz",
        &[],
    );
    shown.is_packed(["d.tar", "d/9"]);
    shown.agree("busybox find . -type f | sort | busybox xargs busybox sha256sum; busybox grep -rc 777 d | sort");
    shown.agree("busybox tar -tf d.tar; busybox tail -n 3 link; busybox cmp d/1 d/1 && echo same; busybox zcat small.gz");
    shown.agree("busybox stat -c '%s %a %h' d/1; busybox dd if=d/2 bs=1000 skip=9 count=3 2> /dev/null | busybox md5sum; busybox diff -r d d && echo none");
    shown.agree("busybox cp d/3 /dev/stdout | busybox wc; busybox hexdump -C -n 64 -s 5000 d/4; busybox awk 'END { print NR }' d/5");
}
