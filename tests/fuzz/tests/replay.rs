//! The saved corpus, what was found and mended, and some thousand changes of them, the same ones every time, through the fuzz
//! targets. This takes no more than a stable toolchain; `scripts/fuzz` goes on from the same corpus for as long as it is let.
//!
//! `FUZZ_CHANGES` is how many changed inputs each target gets. An input at which the process ends lies in Cargo's directory
//! for temporary files (`target/.../tmp`), under its target's name.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use warpfs_fuzz::{Random, TARGETS, memory, mutate};

/// How many changed inputs each target gets by default.
const CHANGES: usize = 1000;
/// The longest input, in bytes: vectors are left as they are.
const LONGEST: usize = 64 << 10;
/// How long an input may take: a hundred times what the slowest does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory is counted for the whole process, so one target runs at a time.
static TURN: Mutex<()> = Mutex::new(());
static PANICKED: AtomicBool = AtomicBool::new(false);
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Panics count wherever they happen, also where somebody catches them. What does not come to an end, ends the process.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED.store(true, Ordering::SeqCst);
            memory::lift();
            report(panic);
        }));
        std::thread::spawn(|| {
            loop {
                let before = RUNS.load(Ordering::SeqCst);
                std::thread::sleep(PATIENCE);
                if before % 2 == 1 && before == RUNS.load(Ordering::SeqCst) {
                    eprintln!("an input takes more than {PATIENCE:?}");
                    std::process::abort();
                }
            }
        });
    });
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(name: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    watch();
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut inputs = Vec::new();
    for directory in ["corpus", "regressions"] {
        inputs.extend(files(&root.join(directory).join(name)));
    }
    assert!(!inputs.is_empty(), "there is no corpus");
    let vectors = match name {
        "archive" => &["../data", "../data/older"][..],
        "structures" => &["../data/older"],
        _ => &[],
    };
    for directory in vectors {
        let vectors = files(&root.join(directory)).into_iter();
        inputs.extend(vectors.filter(|file| file.extension().is_some_and(|end| end == "warp")));
    }
    let at_hand = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let run = |input: &[u8], what: &str| {
        fs::write(&at_hand, input).unwrap();
        PANICKED.store(false, Ordering::SeqCst);
        RUNS.fetch_add(1, Ordering::SeqCst);
        let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
        RUNS.fetch_add(1, Ordering::SeqCst);
        let panicked = PANICKED.load(Ordering::SeqCst);
        assert!(
            outcome.is_ok() && !panicked,
            "{what}; it is in {}",
            at_hand.display()
        );
    };
    let inputs: Vec<(String, Vec<u8>)> = inputs
        .iter()
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    for (path, input) in &inputs {
        run(input, path);
    }
    let changes = std::env::var("FUZZ_CHANGES").map_or(CHANGES, |number| {
        number.parse().expect("FUZZ_CHANGES is a number")
    });
    for change in 0..changes {
        let mut random = Random(change as u64);
        let (path, input) = &inputs[random.index(inputs.len())];
        let mut input = input.clone();
        input.truncate(LONGEST);
        let mut bytes_random = random.clone();
        let mut bytes = |bytes: &mut Vec<u8>, most| mutate::bytes(bytes, most, &mut bytes_random);
        match name {
            "archive" => mutate::archive(&mut input, LONGEST, &mut random, &mut bytes),
            "decode" => mutate::chunk(&mut input, LONGEST, &mut random, &mut bytes),
            _ => bytes(&mut input, LONGEST),
        }
        run(&input, &format!("change {change} of {path}"));
    }
    fs::remove_file(&at_hand).unwrap();
}

#[test]
fn structures() {
    replay("structures");
}

#[test]
fn decode() {
    replay("decode");
}

#[test]
fn archive() {
    replay("archive");
}

#[test]
fn differential() {
    replay("differential");
}
