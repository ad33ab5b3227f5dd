"""One release of the Python package at work: run with the release's directory first in PYTHONPATH.

Standard input is a JSON array of jobs, each an object: "input" and "output" (paths), "level", "chunk" (bytes, or null for the
release's own choice), "patch" (a list of what is changed about the release first, see below) and "back" (also have the release
unpack what it packed). Standard output is a JSON array with an object for each: "packed" and "back", null for what went well
and else the error; "same", whether what was unpacked is the input. An argument is a file to unpack besides; the last object of
the array then has "ours", null or the error.

What these releases cannot do by themselves, found by running them:

- 0.1.3 fails where the number of threads is left to it (it compares None with a number), and with more than one its zstd crashes,
  because they share a compressor. It is given one.
- 0.7.5 cannot be imported: two docstrings stand before its `from __future__ import`, which is a syntax error. The first is
  taken out here; nobody who did not do the same has such a file.
- 0.7.0 writes its header last, behind the chunks: it waits in the buffer of the file object while the chunks go to the
  descriptor. Its own reader refuses such files, for their first bytes. Patch "front" puts the header where it was meant to be.
- 0.7.0 cannot make zstd chunks: its cache asks a thread-local object for an attribute whose name is a tuple. Patch "zstd"
  makes a compressor without the cache.
- 0.7.0 loses stored chunks where os.copy_file_range works: it gives the arguments in a wrong order. Patch "sendfile" takes
  that function away, as on systems that do not have it or between two file systems.
- 0.7.0 decides on each chunk's codec itself. Patch "codec=N" decides for it.

Patch "without=NAME" takes a codec's module from a release of 0.7.1 to 0.7.5, which all do without some.
"""

import importlib.util
import json
import os
import struct
import sys
from pathlib import Path

# Of threads, for the releases that have any.
WORKERS = 1 if "/0.1.3" in os.environ["PYTHONPATH"] else 2


def load():
    """The release's core, mended if it has to be."""
    place = importlib.util.find_spec("warpcompress").origin
    path = Path(place).with_name("core.py")
    source = path.read_text(encoding="utf-8")
    try:
        compile(source, str(path), "exec")
    except SyntaxError:
        marker = 'warpcompress.core (v0.7.5)'
        start = source.index('"""', source.index('"""') + 3) + 3
        assert source.index(marker) > start
        source = source[start:].lstrip()
    spec = importlib.util.spec_from_loader("core", loader=None, origin=str(path))
    core = importlib.util.module_from_spec(spec)
    sys.modules["core"] = core
    exec(compile(source, str(path), "exec"), core.__dict__)
    return core


def put_in_front(path):
    """Moves the 18 bytes of 0.7.0's header from the end to the front."""
    data = path.read_bytes()
    assert data[-18:-12] == b"WARP\x02\xff", "the header is not at the end"
    path.write_bytes(data[-18:] + data[:-18])


def pack(core, job):
    taken = {}
    try:
        for patch in job.get("patch", []):
            name, _, value = patch.partition("=")
            if name == "zstd":
                taken["_zstd_c"] = core._zstd_c
                core._zstd_c = lambda level, threads: core.zstd.ZstdCompressor(level=level, threads=threads).compress
            elif name == "codec":
                taken["_pick_codec_for_chunk"] = core._pick_codec_for_chunk
                core._pick_codec_for_chunk = lambda level, sample, number=int(value): number
            elif name == "sendfile":
                taken["_copy_file_range"] = core._copy_file_range
                core._copy_file_range = lambda *_: -1
            elif name == "without":
                taken[value] = getattr(core, value)
                setattr(core, value, None)
        size = "chunk" if "chunk" in (core.compress_file.__kwdefaults__ or {}) else "chunk_size"
        options = {size: job["chunk"]} if job["chunk"] else {}
        if "workers" in (core.compress_file.__kwdefaults__ or {}):
            options["workers"] = WORKERS
        core.compress_file(job["input"], job["output"], level=job["level"], **options)
        if "front" in job.get("patch", []):
            put_in_front(Path(job["output"]))
    finally:
        for name, value in taken.items():
            setattr(core, name, value)


def attempt(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def main():
    core = load()
    results = []
    for job in json.load(sys.stdin):
        result = {"packed": attempt(lambda: pack(core, job)), "back": None, "same": False}
        if job.get("back") and os.path.exists(job["output"]):
            back = job["output"] + ".back"
            options = {"workers": WORKERS} if "workers" in core.decompress_file.__kwdefaults__ else {}
            result["back"] = attempt(lambda: core.decompress_file(job["output"], back, **options))
            if result["back"] is None:
                result["same"] = Path(back).read_bytes() == Path(job["input"]).read_bytes()
            if os.path.exists(back):
                os.remove(back)
        results.append(result)
    for other in sys.argv[1:]:
        results.append({"ours": attempt(lambda: core.decompress_file(other, other + ".back"))})
    json.dump(results, sys.stdout)


main()
