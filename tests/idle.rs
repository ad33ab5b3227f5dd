//! `--idle-timeout`: a mount that nobody uses ends by itself; one that is used in any way does not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Bound, Mounted, Running, is_mounted, sample, shell, vector, wait_until};

fn source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    fs::copy(vector("v2-zstd-blake3.warp"), source.path().join("x.warp")).unwrap();
    source
}

fn ends_well(mounted: &mut Mounted) {
    let mut status = None;
    wait_until("the end of the server", || {
        status = mounted.server.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0), "{}", mounted.logged());
    assert!(!is_mounted(&mounted.mount_point));
}

#[test]
fn a_mount_that_nobody_uses_ends_by_itself_and_not_before_its_time() {
    let source = source();
    let mut mounted = Mounted::new(source.path(), &["--idle-timeout", "1.5"]);
    let mut asked = Instant::now();
    // Asked now and then, it stays for longer than its time.
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(300));
        // A name that no cache of the kernel's has.
        assert!(!mounted.path(format!("{asked:?}")).exists());
        asked = Instant::now();
    }
    ends_well(&mut mounted);
    assert!(asked.elapsed() >= Duration::from_millis(1400));
    let log = mounted.logged();
    assert!(
        log.contains("nobody uses") && log.contains("is unmounted"),
        "{log}"
    );
}

#[test]
fn a_mount_in_use_stays_however_quiet_it_is() {
    let source = source();
    let original = sample(1 << 20, 3);
    fs::write(source.path().join("y"), &original).unwrap();
    let mut mounted = Mounted::new(source.path(), &["-v", "--idle-timeout", "0.5"]);
    let stays = |mounted: &Mounted, what: &str| {
        let before = mounted.logged().matches("is in use").count();
        wait_until(what, || {
            mounted.logged().matches("is in use").count() >= before + 2
        });
        assert!(is_mounted(&mounted.mount_point), "{what}");
    };
    let open = File::open(mounted.path("x")).unwrap();
    stays(&mounted, "an open file");
    let worker = Running::inside(&mounted.mount_point);
    drop(open);
    stays(&mounted, "a working directory");
    let map = "import mmap,os,sys,time
f = os.open(sys.argv[1], os.O_RDONLY); m = mmap.mmap(f, 0, prot=mmap.PROT_READ); os.close(f); print(m[0], flush=True)
time.sleep(60)";
    let mapper = Command::new("python3")
        .args(["-c", map])
        .arg(mounted.path("x"))
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut mapper = Running(mapper.unwrap());
    std::io::Read::read_exact(mapper.0.stdout.as_mut().unwrap(), &mut [0; 2]).unwrap();
    drop(worker);
    stays(&mounted, "a mapped file");
    let over = mounted.mount_point.clone();
    shell(
        Path::new("/"),
        &format!("mount -t tmpfs over {}", over.display()),
    );
    drop(mapper);
    let covered = mounted.logged().matches("is in use").count();
    wait_until("staying beneath another", || {
        mounted.logged().matches("is in use").count() > covered + 1
    });
    shell(Path::new("/"), &format!("umount {}", over.display()));
    ends_well(&mut mounted);
}

#[test]
fn a_bind_mount_and_a_file_open_through_an_overlay_are_use() {
    let source = source();
    let mut mounted = Mounted::new(source.path(), &["-v", "--idle-timeout", "0.5"]);
    // Until the next holds it.
    let held = File::open(&mounted.mount_point).unwrap();
    let place = tempfile::tempdir().unwrap();
    let stays = |mounted: &Mounted, what: &str| {
        let before = mounted.logged().matches("is in use").count();
        wait_until(what, || {
            mounted.logged().matches("is in use").count() >= before + 2
        });
        assert!(is_mounted(&mounted.mount_point), "{what}");
    };
    let original = mounted.mount_point.display().to_string();
    shell(place.path(), "mkdir bound over upper work");
    let [bound, over] = ["bound", "over"].map(|name| place.path().join(name));
    shell(place.path(), &format!("mount --bind {original} bound"));
    let bind_mount = Bound(&bound);
    drop(held);
    stays(&mounted, "a bind mount");
    assert!(is_mounted(&bound));
    let options = format!("lowerdir={original},upperdir=upper,workdir=work");
    shell(
        place.path(),
        &format!("mount -t overlay overlay -o {options} over"),
    );
    let overlay = Bound(&over);
    let open = File::open(over.join("x")).unwrap();
    drop(bind_mount);
    stays(&mounted, "a file open through an overlay");
    drop(open);
    drop(overlay);
    ends_well(&mut mounted);
}

#[test]
fn no_time_is_refused() {
    for wrong in ["0", "-1", "soon", "inf"] {
        let output = common::warpfs()
            .args(["mount", "/", "/mnt", "--idle-timeout", wrong])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}
