"""Files of the releases that came after 0.1.0, of random contents and with random options, read by warpfs whole.

Prints a line for each release: how many files, how many of them the release itself could read again, and why not if none.
Seeded by the second of the day, which is printed: give it as the third argument to have the same files again.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES = 12


def content(source):
    """Stretches of text, zeros and noise, as long as chance has it."""
    size = source.choice([0, 1, 2, 300, 65_536, 256 << 10, source.randrange(3 << 20), source.randrange(3 << 20)])
    pieces, length = [], 0
    while length < size:
        span = source.randrange(1, 400_000)
        kind = source.randrange(4)
        if kind == 0:
            piece = source.randbytes(min(span, 50_000))
        elif kind == 1:
            piece = bytes(span)
        else:
            piece = (b"%d bottles of beer on the wall, " % source.randrange(100)) * (span // 30 + 1)
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)[:size]


def job(source, release, number, directory):
    early = release.startswith("0.1")
    levels = ["throughput", "lz4", "zstd", "ratio"] + (["auto", "balanced", "max", "anything"] if early or release == "0.7.0" else [])
    sizes = [None, 1 << 20, source.randrange(1 << 12, 1 << 20)]
    patch = []
    if release == "0.7.0":
        # It makes no zstd chunk and no whole stored one by itself; see older_release.py.
        patch = ["zstd", "sendfile"] + source.choice([[], [], ["front"], [f"codec={source.randrange(5)}"]])
    elif not early:
        patch = source.choice([[], [], [], ["without=lz4f"], ["without=zstd"]])
        if release == "0.7.5":
            patch = source.choice([[], [], ["without=lz4b"], ["without=zstd"]])
    return {
        "input": f"{directory}/{number}",
        "output": f"{directory}/{number}.warp",
        "level": source.choice(levels),
        "chunk": source.choice(sizes),
        "patch": patch,
        "back": True,
    }


def run_release(jobs, ours, environment):
    return subprocess.run([sys.executable, "scripts/older_release.py", str(ours)], input=json.dumps(jobs), text=True,
                          env=environment, stdout=subprocess.PIPE, check=False)


def main():
    warpfs, releases = sys.argv[1], Path(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else int(time.time()) % 86_400
    source = random.Random(seed)
    total = 0
    for release in sorted(path.name for path in releases.iterdir() if path.name != "0.1.0"):
        with tempfile.TemporaryDirectory() as directory:
            jobs = []
            for number in range(FILES):
                Path(directory, str(number)).write_bytes(content(source))
                jobs.append(job(source, release, number, directory))
            # Does it read ours?
            ours = Path(directory, "0.warp.ours")
            subprocess.run([warpfs, "pack", "-qf", "-o", str(ours), f"{directory}/1"], check=True)
            environment = dict(os.environ, PYTHONPATH=str(releases / release))
            ran = run_release(jobs, ours, environment)
            if ran.returncode < 0:
                # 0.1.4 decodes in several threads with one context, and may die of it. What it writes is the question here.
                for each in jobs:
                    each["back"] = False
                    Path(each["output"]).unlink(missing_ok=True)
                ran = run_release(jobs, ours, environment)
            ran.check_returncode()
            results = json.loads(ran.stdout)
            refusal = results.pop()["ours"]
            assert refusal is not None, f"release {release} took a file of version 2"
            own, failures = 0, set()
            for work, result in zip(jobs, results, strict=True):
                what = f"seed {seed}, release {release}, {work}"
                original = Path(work["input"]).read_bytes()
                if result["packed"]:
                    # Releases that cannot map an empty file stop behind the header, which is all there is to such a file.
                    assert not original, f"{result['packed']}: {what}"
                own += result["same"]
                failures |= {result["back"]} - {None}
                back = Path(directory, "back")
                for command in (["verify", "-q"], ["unpack", "-qf", "-o", str(back)]):
                    subprocess.run([warpfs, *command, work["output"]], check=True)
                assert back.read_bytes() == original, f"our reader, their file: {what}"
                total += 1
        why = f" (else {', '.join(sorted(failures))})" if failures else ""
        print(f"interop: {release}: {len(jobs)} files read whole; by itself, it reads {own} of them{why}")
    if not total:
        sys.exit("interop: there is no other release to read the files of")
    print(f"interop: {total} files of other releases were read whole (seed {seed}); none of the releases takes one of ours")


main()
