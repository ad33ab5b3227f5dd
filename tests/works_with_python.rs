//! Python, its data libraries and whole environments work on what a mount shows. Each test is a row of docs/WORKS_WITH.md.
//!
//! `scripts/works-with-python` fetches the libraries once; where it cannot, nothing is tested, and that is said.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::shell;
use common::shown::Shown;

/// The Python that has the libraries.
fn python() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/works-with-python");
    let output = Command::new(script).output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        common::left_out(&format!("the libraries cannot be had: {why}"));
        return None;
    }
    Some(PathBuf::from(
        String::from_utf8(output.stdout).unwrap().trim(),
    ))
}

/// What a script with these libraries makes, shown.
fn made(python: &Path, script: &str) -> Shown {
    Shown::made(
        |originals| {
            let output = Command::new(python)
                .args(["-c", script])
                .current_dir(originals)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        },
        &[],
    )
}

#[test]
fn duckdb_queries_packed_parquet_and_csv_files_and_its_own_databases() {
    let Some(python) = python() else { return };
    let shown = made(
        &python,
        "
import duckdb
duckdb.sql(\"create table t as select range as n, 'row ' || range % 977 as words, sin(range) as wave from range(300000)\")
duckdb.sql(\"copy t to 'plain.parquet' (format parquet, compression uncompressed, row_group_size 20000)\")
duckdb.sql(\"copy t to 'zstd.parquet' (format parquet, compression zstd, row_group_size 20000)\")
duckdb.sql(\"copy t to 'table.csv' (header)\")
base = duckdb.connect('base.duckdb'); base.sql(\"create table t as select * from 'plain.parquet'\"); base.close()
",
    );
    shown.is_packed(["plain.parquet", "table.csv"]);
    shown.python_of(
        &python,
        "
import duckdb
for query in ['select count(*), sum(n), max(words), round(sum(wave), 6) from {}',
        'select words, count(*) from {} where n between 123456 and 133456 group by words order by words',
        'select wave from {} where n in (7, 299999, 150000) order by n']:
    for table in ['plain.parquet', 'zstd.parquet', 'table.csv']:
        told = duckdb.sql(query.format(f\"'{table}'\")).fetchall()
        expected = duckdb.sql(query.format(f\"'{originals}{table}'\")).fetchall()
        assert told == expected and told, table
base = duckdb.connect('base.duckdb', read_only=True)
assert base.sql('select count(*), sum(n) from t').fetchall() == [(300000, 44999850000)]
base.close()
try: duckdb.connect('base.duckdb')
except duckdb.IOException as error: assert 'Read-only file system' in str(error), error
else: assert False, 'opened for writing'
",
    );
}

#[test]
fn numpy_maps_packed_arrays() {
    let Some(python) = python() else { return };
    let shown = made(
        &python,
        "
import numpy
numbers = numpy.arange(3_000_000, dtype='int32').reshape(3000, 1000)
numpy.save('array.npy', numbers); numbers.tofile('raw'); numpy.savez('arrays.npz', one=numbers[:500], two=numbers[::7])
",
    );
    shown.is_packed(["array.npy", "raw", "arrays.npz"]);
    shown.python_of(
        &python,
        "
import numpy
expected = numpy.arange(3_000_000, dtype='int32').reshape(3000, 1000)
mapped = numpy.load('array.npy', mmap_mode='r')
assert (mapped[1234, 5:99] == expected[1234, 5:99]).all() and (mapped[::97, 3] == expected[::97, 3]).all()
assert mapped.sum(dtype='int64') == expected.sum(dtype='int64')
raw = numpy.memmap('raw', dtype='int32', mode='c', shape=(3000, 1000))
raw[5] = 1
assert (raw[6:] == expected[6:]).all() and (numpy.fromfile('raw', dtype='int32') == expected.ravel()).all()
assert refused(numpy.memmap, 'raw', dtype='int32', mode='r+') == 'EROFS'
assert (numpy.load('arrays.npz')['two'] == expected[::7]).all()
",
    );
}

#[test]
fn safetensors_maps_packed_model_weights() {
    let Some(python) = python() else { return };
    let shown = made(
        &python,
        "
import numpy
from safetensors.numpy import save_file
random = numpy.random.default_rng(7)
save_file({f'layer.{n}.weight': random.standard_normal((256, 512)).astype('float16').astype('float32') for n in range(16)},
    'model.safetensors', metadata={'made': 'for a test'})
",
    );
    shown.is_packed(["model.safetensors"]);
    shown.python_of(
        &python,
        "
import numpy
from safetensors import safe_open
from safetensors.numpy import load_file
with safe_open('model.safetensors', 'numpy') as shown, safe_open(originals + 'model.safetensors', 'numpy') as expected:
    assert shown.metadata() == {'made': 'for a test'} and list(shown.keys()) == list(expected.keys())
    part = shown.get_slice('layer.11.weight')[100:200, 7:99]
    assert (part == expected.get_slice('layer.11.weight')[100:200, 7:99]).all()
    for name in expected.keys(): assert (shown.get_tensor(name) == expected.get_tensor(name)).all(), name
assert len(load_file('model.safetensors')) == 16
",
    );
}

#[test]
fn a_virtual_environment_runs_from_a_packed_tree() {
    let Some(python) = python() else { return };
    let shown = Shown::made(
        |originals| {
            // What pip has installed, compiled parts included, and without what Python has compiled of it.
            let packages = shell(
                Path::new("/"),
                &format!(
                    "{} -c 'import safetensors, os; print(os.path.dirname(os.path.dirname(safetensors.__file__)))'",
                    python.display()
                ),
            );
            shell(
                originals,
                &format!(
                    "{} -m venv --without-pip venv; packages=$(echo venv/lib/python*/site-packages)
                    cp -r {1}/safetensors {1}/safetensors-* {1}/pip {1}/pip-* $packages/
                    find venv -name __pycache__ -prune -exec rm -r {{}} +
                    printf 'import json\\nprint(json.dumps(\"from a zip\"))\\n' > zipped.py; seq 2000 | sed 's/^/# /' >> zipped.py
                    zip -q -0 zipped.whl zipped.py; rm zipped.py",
                    python.display(),
                    packages.trim()
                ),
            );
        },
        &[],
    );
    let packed = shell(
        &shown.packed(""),
        "find . -name '*.so.warp' -o -name '__init__.py.warp' | wc -l",
    );
    assert!(packed.trim().parse::<u32>().unwrap() > 5, "{packed}");
    let told = shown.shell(
        "unset PYTHONPATH PYTHONHOME; venv/bin/python -c '
import sys, safetensors, safetensors._safetensors_rust as compiled
print(sys.prefix); print(safetensors.__file__); print(compiled.__file__); print(len(safetensors.serialize({}, {})))'
        venv/bin/python -m pip --version | grep -c site-packages
        sh -c '. venv/bin/activate && command -v python'
        PYTHONPATH=zipped.whl venv/bin/python -c 'import zipped'",
    );
    let at = shown.mounted.mount_point.display().to_string();
    assert_eq!(told.matches(&at).count(), 3, "{told}");
    assert!(
        told.contains("\n1\n") && told.ends_with("\"from a zip\"\n"),
        "{told}"
    );
    assert!(!shell(&shown.packed(""), "find . -name __pycache__").contains("__pycache__"));
}
