//! overlayfs on top of a mount gives a tree that can be written; what was changed is packed again as docs/WORKS_WITH.md says.
//! Each test is a row of its table. (Programs on an overlay: tests/programs.rs, too.)

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::shown::Shown;
use common::{Mounted, run, sample, shell};
use rustix::mount::{UnmountFlags, unmount};

/// An overlay; unmounted when dropped, also when a test fails.
struct Overlay {
    merged: PathBuf,
    upper: PathBuf,
}

impl Overlay {
    /// Over these layers, the uppermost first, with what is changed in a directory of `place`.
    fn new(place: &Path, layers: &[&Path]) -> Self {
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| layer.display().to_string())
            .collect();
        shell(
            place,
            &format!(
                "mkdir upper work merged
                mount -t overlay overlay -o userxattr,lowerdir={},upperdir=upper,workdir=work merged",
                layers.join(":")
            ),
        );
        Self {
            merged: place.join("merged"),
            upper: place.join("upper"),
        }
    }

    fn shell(&self, script: &str) -> String {
        shell(&self.merged, script)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(&self.merged, UnmountFlags::DETACH);
    }
}

const SIZE: usize = 24 << 20;

/// One mount for all tests: none of them changes it.
fn shown() -> Arc<Shown> {
    static SHARED: Mutex<Weak<Shown>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let shown = Arc::new(make());
        *shared = Arc::downgrade(&shown);
        shown
    })
}

fn make() -> Shown {
    let shown = Shown::made(
        |originals| {
            fs::write(originals.join("big"), sample(SIZE, 1)).unwrap();
            fs::write(originals.join("gone"), sample(300_000, 2)).unwrap();
            fs::write(originals.join("moved"), sample(300_000, 3)).unwrap();
            shell(
                originals,
                "mkdir -p kept replaced/deep dropped/deep
                for directory in kept replaced/deep dropped/deep; do seq 30000 > $directory/text; done
                seq 50000 > untouched; echo tiny > tiny; chmod 751 kept; chown 1:1 kept/text; ln -s kept/text link; touch -d 2003-02-01 kept/text",
            );
        },
        &[],
    );
    shown.is_packed(["big", "gone", "moved", "kept/text", "replaced/deep/text"]);
    shown
}

/// Changes of every kind, the same whether the tree is an overlay or an ordinary one.
const CHANGES: &str = "
    printf PATCH | dd of=big bs=1 seek=15000001 conv=notrunc status=none
    rm gone; mv moved renamed; echo more >> tiny
    rm -r dropped; rm -r replaced; mkdir replaced; echo fresh > replaced/other
    mkdir -p made/deep; seq 40000 > made/deep/text; chmod 600 made/deep/text
    chmod 640 kept/text; ln -s made/deep/text link2; rm link; ln made/deep/text made/linked";

/// What a tree holds: names, kinds, modes, owners, sizes, targets, contents.
const TOLD: &str = "find . ! -path . -printf '%p %y %m %U %G %l\\n' | sort
    find . -type f -print0 | sort -z | xargs -0 sha256sum; find . -type f -printf '%p %s %T@\\n' | grep kept | sort";

/// The original tree, copied and changed in the same way.
fn expected(shown: &Shown) -> PathBuf {
    let changed = shown.elsewhere();
    shell(
        &changed,
        &format!("cp -a {}/. .; {CHANGES}", shown.original("").display()),
    );
    changed
}

#[test]
fn everything_in_an_overlay_can_be_written_renamed_and_removed_and_the_mount_stays_as_it_is() {
    let shown = shown();
    let before = shown.shell(TOLD);
    let overlay = Overlay::new(&shown.elsewhere(), &[&shown.mounted.mount_point]);
    overlay.shell(CHANGES);
    assert_eq!(overlay.shell(TOLD), shell(&expected(&shown), TOLD));
    // The big file was copied up to be written to, as a whole; what was not written to was not.
    let copied = fs::metadata(overlay.upper.join("big")).unwrap();
    assert_eq!(copied.size(), SIZE as u64);
    assert!(!overlay.upper.join("untouched").exists());
    // Written to through maps and by programs that replace files.
    overlay.shell(
        "python3 -c '
import mmap
with open(\"big\", \"r+b\") as file, mmap.mmap(file.fileno(), 0) as mapped: mapped[7000000:7000005] = b\"MAPPS\"'
        sed -i 's/^29999$/changed/' kept/text; grep -q changed kept/text
        sqlite3 base.sqlite 'create table t(n); insert into t values(1), (2)'; test $(sqlite3 base.sqlite 'select sum(n) from t') = 3",
    );
    let mut bytes = [0; 5];
    let file = fs::File::open(overlay.merged.join("big")).unwrap();
    file.read_exact_at(&mut bytes, 7_000_000).unwrap();
    assert_eq!(&bytes, b"MAPPS");
    drop(file);
    drop(overlay);
    assert_eq!(shown.shell(TOLD), before);
    assert_eq!(before, shell(&shown.original(""), TOLD));
}

#[test]
fn the_merged_tree_packs_into_a_new_tree_that_shows_every_change() {
    let shown = shown();
    let place = shown.elsewhere();
    let overlay = Overlay::new(&place, &[&shown.mounted.mount_point]);
    overlay.shell(CHANGES);
    let packed = place.join("packed");
    run([
        Path::new("pack"),
        Path::new("-q"),
        Path::new("-r"),
        Path::new("-o"),
        &packed,
        &overlay.merged,
    ]);
    drop(overlay);
    let fresh = Mounted::new(&packed, &[]);
    assert_eq!(
        shell(&fresh.mount_point, TOLD),
        shell(&expected(&shown), TOLD)
    );
    // Nothing of the overlay's and of the first packing stays behind.
    let attributes = shell(&fresh.mount_point, "getfattr -R -d -m - .");
    assert!(!attributes.contains("overlay"), "{attributes}");
    assert!(packed.join("big.warp").exists());
}

#[test]
fn what_was_changed_packs_into_a_layer_of_its_own_that_is_laid_over_the_first() {
    let shown = shown();
    let place = shown.elsewhere();
    let overlay = Overlay::new(&place, &[&shown.mounted.mount_point]);
    overlay.shell(CHANGES);
    drop(overlay);
    // The recipe of docs/WORKS_WITH.md. What is removed is a device of the number 0, which `pack` leaves out.
    let output = common::warpfs()
        .args(["pack", "-r", "upper", "-o", "layer"])
        .current_dir(&place)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("upper/gone: left out"), "{said}");
    shell(
        &place,
        "(cd upper && find . -type c -print0 | tar -c --null --no-recursion -T - -f -) | tar -x -C layer -f -",
    );
    assert!(place.join("layer/big.warp").exists());
    assert!(!place.join("layer/kept/text.warp").exists() || place.join("upper/kept/text").exists());
    let layer = Mounted::new(&place.join("layer"), &[]);
    let again = shown.elsewhere();
    let overlay = Overlay::new(&again, &[&layer.mount_point, &shown.mounted.mount_point]);
    assert_eq!(overlay.shell(TOLD), shell(&expected(&shown), TOLD));
    // And can be written once more.
    overlay.shell("echo again >> tiny; rm -r made; mv big bigger");
    assert_eq!(overlay.shell("cat tiny"), "tiny\nmore\nagain\n");
    drop(overlay);
}

#[test]
fn an_overlay_without_an_upper_directory_merges_two_mounts() {
    let below = Shown::new("seq 30000 > both; seq 50000 > below", &[]);
    let above = Shown::new("seq 40000 > both; seq 60000 > above", &[]);
    let merged = below.elsewhere();
    shell(
        &merged,
        &format!(
            "mount -t overlay overlay -o lowerdir={}:{} {}",
            above.mounted.mount_point.display(),
            below.mounted.mount_point.display(),
            merged.display()
        ),
    );
    let overlay = Overlay {
        merged,
        upper: PathBuf::new(),
    };
    assert_eq!(
        overlay
            .shell("seq 40000 | cmp - both; seq 50000 | cmp - below; seq 60000 | cmp - above; ls"),
        "above\nbelow\nboth\n"
    );
    let refused = Command::new("touch")
        .arg(overlay.merged.join("both"))
        .output()
        .unwrap();
    assert!(!refused.status.success());
}
