//! Whole-file jobs on a few files, and what has to hold of those files whatever happens to the job.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use warpfs::job::Control;
use warpfs::unpack::{UnpackOptions, unpack_to};

use super::{packed, sample, warpfs};

/// A job: the command line without the program, and the files it is for.
pub struct Job {
    pub words: Vec<&'static str>,
    pub files: Vec<Work>,
}

/// One file of a job, as paths below the directory that the job is run in.
pub struct Work {
    input: &'static str,
    output: &'static str,
    /// The file that it is a hard link of.
    link_of: Option<&'static str>,
    original: Arc<Vec<u8>>,
    packed: Arc<Vec<u8>>,
    /// Packed or not, what has the output's name before.
    old: Option<Arc<Vec<u8>>>,
}

/// Which files a job has left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    pub inputs: usize,
    pub outputs: usize,
    /// Temporary files.
    pub strays: Vec<PathBuf>,
}

fn work(input: &'static str, output: &'static str, length: usize) -> Work {
    let original = sample(length, length as u64);
    let packed = packed(&original, &["--chunk-size", "64K"]);
    Work {
        input,
        output,
        link_of: None,
        original: Arc::new(original),
        packed: Arc::new(packed),
        old: None,
    }
}

fn link(to: &Work, input: &'static str, output: &'static str) -> Work {
    Work {
        input,
        output,
        link_of: Some(to.input),
        original: to.original.clone(),
        packed: to.packed.clone(),
        old: None,
    }
}

/// Jobs of every kind; the largest file of each has about `length` bytes.
pub fn jobs(length: usize) -> Vec<Job> {
    let file = || vec![work("original", "original.warp", length)];
    let packed = || vec![work("packed.warp", "packed", length)];
    let older = |mut files: Vec<Work>| {
        let old = work("", "", length / 2);
        files[0].old = Some(match files[0].packs() {
            true => old.packed,
            false => old.original,
        });
        files
    };
    let tree = |paths: [[&'static str; 2]; 4]| {
        let [large, linked, again, small] = paths;
        let linked = work(linked[0], linked[1], length / 3);
        let again = link(&linked, again[0], again[1]);
        let (large, small) = (
            work(large[0], large[1], length),
            work(small[0], small[1], 9_000),
        );
        vec![large, linked, again, small]
    };
    let tree_packed_in_place = || {
        tree([
            ["tree/a", "tree/a.warp"],
            ["tree/d/b", "tree/d/b.warp"],
            ["tree/d/link", "tree/d/link.warp"],
            ["tree/z", "tree/z.warp"],
        ])
    };
    let tree_unpacked_in_place = || {
        tree([
            ["tree/a.warp", "tree/a"],
            ["tree/d/b.warp", "tree/d/b"],
            ["tree/d/link.warp", "tree/d/link"],
            ["tree/z.warp", "tree/z"],
        ])
    };
    let tree_to_packed_tree = || {
        tree([
            ["tree/a", "out/a.warp"],
            ["tree/d/b", "out/d/b.warp"],
            ["tree/d/link", "out/d/link.warp"],
            ["tree/z", "out/z.warp"],
        ])
    };
    let tree_to_unpacked_tree = || {
        tree([
            ["tree/a.warp", "out/a"],
            ["tree/d/b.warp", "out/d/b"],
            ["tree/d/link.warp", "out/d/link"],
            ["tree/z.warp", "out/z"],
        ])
    };
    let job = |words: &[&'static str], files| Job {
        words: words.to_vec(),
        files,
    };
    vec![
        job(&["pack", "original"], file()),
        job(&["pack", "--rm", "original"], file()),
        job(&["pack", "-f", "--rm", "original"], older(file())),
        job(&["pack", "-o", "original.warp", "-"], file()),
        job(&["unpack", "packed.warp"], packed()),
        job(&["unpack", "--rm", "packed.warp"], packed()),
        job(&["unpack", "-f", "--rm", "packed.warp"], older(packed())),
        job(
            &["pack", "-r", "-f", "--rm", "tree"],
            tree_packed_in_place(),
        ),
        job(
            &["unpack", "-r", "-f", "--rm", "tree"],
            tree_unpacked_in_place(),
        ),
        job(&["pack", "-r", "-o", "out", "tree"], tree_to_packed_tree()),
        job(
            &["unpack", "-r", "-o", "out", "tree"],
            tree_to_unpacked_tree(),
        ),
    ]
}

impl Work {
    fn packs(&self) -> bool {
        self.output.ends_with(".warp")
    }

    fn input_bytes(&self) -> &[u8] {
        match self.packs() {
            true => &self.original,
            false => &self.packed,
        }
    }
}

impl Job {
    pub fn removes(&self) -> bool {
        self.words.contains(&"--rm")
    }

    pub fn name(&self) -> String {
        self.words.join(" ")
    }

    /// The first path that the job is given, as it stands in its system calls.
    pub fn first_name(&self) -> &'static str {
        match self.words.contains(&"-") {
            true => ".original",
            false => self.words.last().unwrap(),
        }
    }

    /// Makes the job's files in a directory that has nothing else.
    pub fn prepare(&self, directory: &Path) {
        for file in &self.files {
            let input = directory.join(file.input);
            fs::create_dir_all(input.parent().unwrap()).unwrap();
            match file.link_of {
                Some(first) => fs::hard_link(directory.join(first), input).unwrap(),
                None => fs::write(input, file.input_bytes()).unwrap(),
            }
            if let Some(old) = &file.old {
                fs::write(directory.join(file.output), &**old).unwrap();
            }
        }
    }

    /// The program, ready to do the job.
    pub fn command(&self, directory: &Path) -> Command {
        let mut command = warpfs();
        command.args(&self.words).arg("-q");
        self.place(&mut command, directory);
        command
    }

    /// Lets a command begin where the job's files are.
    pub fn place(&self, command: &mut Command, directory: &Path) {
        command.current_dir(directory);
        if self.words.contains(&"-") {
            command.stdin(File::open(directory.join(self.files[0].input)).unwrap());
        }
    }

    /// Checks that every file there is under a final name is whole, that no input is gone without its output, and that
    /// none is gone that was not to be removed.
    pub fn check(&self, directory: &Path, when: &str) -> State {
        let mut state = State {
            strays: strays(directory),
            ..State::default()
        };
        for file in &self.files {
            let name = self.name();
            let input = fs::read(directory.join(file.input)).ok();
            if let Some(input) = &input {
                assert!(
                    input == file.input_bytes(),
                    "{name}, {when}: {} was changed",
                    file.input
                );
                state.inputs += 1;
            }
            let output = directory.join(file.output);
            let whole = output.exists() && {
                let found = match file.packs() {
                    true => decoded(&output)
                        .unwrap_or_else(|| panic!("{name}, {when}: {} is damaged", file.output)),
                    false => fs::read(&output).unwrap(),
                };
                let is_old = match (&file.old, file.packs()) {
                    (Some(old), true) => fs::read(&output).unwrap() == **old,
                    (Some(old), false) => found == **old,
                    (None, _) => false,
                };
                assert!(
                    is_old || found == *file.original,
                    "{name}, {when}: {} is not whole",
                    file.output
                );
                !is_old
            };
            state.outputs += usize::from(whole);
            if file.old.is_some() {
                assert!(
                    output.exists(),
                    "{name}, {when}: what was to be replaced is gone"
                );
            }
            let may_go = whole && self.removes();
            assert!(
                input.is_some() || may_go,
                "{name}, {when}: {} is gone",
                file.input
            );
        }
        state
    }

    /// What a job that succeeded has left.
    pub fn done(&self) -> State {
        State {
            inputs: if self.removes() { 0 } else { self.files.len() },
            outputs: self.files.len(),
            strays: Vec::new(),
        }
    }
}

/// What a packed file holds, if it is sound.
pub fn decoded(path: &Path) -> Option<Vec<u8>> {
    let control = Control::default();
    let mut bytes = Vec::new();
    unpack_to(path, &mut bytes, &UnpackOptions::default(), control).ok()?;
    Some(bytes)
}

/// The temporary files below a directory.
pub fn strays(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(strays(&entry.path()));
        } else if entry.file_name().to_string_lossy().ends_with(".part") {
            found.push(entry.path());
        }
    }
    found
}

/// Takes everything out of a directory.
pub fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path.ends_with("lost+found") => {}
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
}
