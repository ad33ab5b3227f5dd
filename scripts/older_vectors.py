"""Makes tests/data/older: files of every release, level and option, small, and manifest.json, which says what they decode to.

Files of several releases that are the same bytes are kept once. "made_by" names the releases; "patched" is true for what no
release writes by itself (see older_release.py for what had to be changed, and why).
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHUNK = 256 << 10
BIG_ENDIAN = ["0.1.2", "0.1.3", "0.1.4", "0.1.5"]
LITTLE_ENDIAN = ["0.7.1", "0.7.2", "0.7.3", "0.7.4"]


def several():
    """Two chunks and a part: one of text, one of zeros, one that begins with noise."""
    source = random.Random(7)
    words = [bytes(source.choices(b"etaoinshrdlu", k=source.randrange(2, 9))) for _ in range(60)]
    sentence = b" ".join(source.choices(words, k=900)) + b".\n"
    text = (sentence * 100)[:CHUNK]
    rest = source.randbytes(4096) + (sentence * 10)[:70_001]
    return text + bytes(CHUNK) + rest


def originals():
    whole = several()
    return {
        "empty": b"",
        "one": b"a",
        "exact": whole[:CHUNK],
        "several": whole,
        "zeros": bytes(3 * CHUNK + 5),
        "noise": random.Random(8).randbytes(5000),
    }


def jobs():
    """(releases, the file's name, the original's, level, patches)"""
    for level in ("throughput", "lz4", "zstd", "ratio"):
        for name in ("several", "exact"):
            yield BIG_ENDIAN, f"{level}-{name}", name, level, []
    for name in ("empty", "one", "zeros", "noise"):
        yield BIG_ENDIAN, f"throughput-{name}", name, "throughput", []
    for name in ("empty", "zeros"):
        yield ["0.7.0"], name, name, "throughput", []
    yield ["0.7.0"], "zeros-front", "zeros", "throughput", ["front"]
    for codec, number in (("stored", 0), ("snappy", 1), ("lz4", 2), ("zstd", 3), ("brotli", 4)):
        yield ["0.7.0"], f"{codec}-several", "several", "throughput", [f"codec={number}", "zstd", "sendfile"]
    yield ["0.7.0"], "zstd-several-front", "several", "throughput", ["codec=3", "zstd", "front"]
    yield ["0.7.0"], "one", "one", "throughput", ["zstd"]
    yield ["0.7.0"], "noise", "noise", "throughput", ["sendfile"]
    for releases in (LITTLE_ENDIAN, ["0.7.5"]):
        for level in ("throughput", "lz4", "zstd", "ratio"):
            for name in ("several", "exact"):
                yield releases, f"{level}-{name}", name, level, []
        for name in ("empty", "one", "zeros", "noise"):
            yield releases, f"throughput-{name}", name, "throughput", []
    yield LITTLE_ENDIAN, "stored-several", "several", "lz4", ["without=lz4f"]
    yield ["0.7.5"], "frames-several", "several", "lz4", ["without=lz4b"]


def main():
    releases, target = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    entries = {}
    with tempfile.TemporaryDirectory() as directory:
        contents = originals()
        for name, content in contents.items():
            Path(directory, name).write_bytes(content)
        for made_by, name, original, level, patch in jobs():
            for release in made_by:
                packed = Path(directory, "packed")
                packed.unlink(missing_ok=True)
                job = {"input": f"{directory}/{original}", "output": str(packed), "level": level, "chunk": CHUNK, "patch": patch}
                environment = dict(os.environ, PYTHONPATH=str(releases / release))
                ran = subprocess.run([sys.executable, "scripts/older_release.py"], input=json.dumps([job]), text=True,
                                     env=environment, check=True, capture_output=True)
                failure = json.loads(ran.stdout)[0]["packed"]
                # Releases that cannot map an empty file stop behind the header, which is all there is to such a file.
                if failure and original != "empty":
                    raise SystemExit(f"{release} {name}: {failure}")
                data = packed.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                if digest in entries:
                    entries[digest]["made_by"] += [release] if release not in entries[digest]["made_by"] else []
                    continue
                entries[digest] = {
                    "file": f"{release}-{name}.warp",
                    "made_by": [release],
                    "patched": bool(patch) or release == "0.7.5",
                    "size": len(contents[original]),
                    "sha256": hashlib.sha256(contents[original]).hexdigest(),
                    "chunk_size": CHUNK,
                }
                (target / entries[digest]["file"]).write_bytes(data)
    manifest = sorted(entries.values(), key=lambda entry: entry["file"])
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(manifest)} files, {sum(path.stat().st_size for path in target.iterdir())} bytes")


main()
