"""What the figures were measured with."""

import importlib.metadata
import re
import subprocess

import machine
from report import megabytes

PACKAGES = ("zstd", "lz4", "squashfs-tools", "squashfuse", "erofs-utils", "btrfs-progs", "rclone", "s3fs")
MODULES = ("ratarmount", "warpcompress")
# What the last of them encodes, decodes and hashes by.
CODECS = ("zstandard", "lz4", "blake3")


def about(bench, section):
    section.compared = False
    versions = []
    for package in PACKAGES:
        found = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True).stdout
        # Without the distribution's part of it.
        versions.append(f"{package} {re.sub(r'^[0-9]+:|[+-].*', '', found) or '?'}")
    versions += [f"{module} {importlib.metadata.version(module)}" for module in MODULES]
    versions[-1] += f" (with {', '.join(f'{module} {importlib.metadata.version(module)}' for module in CODECS)})"
    packed = {codec: sum(file.stat().st_size for file in bench.inputs.packed(codec, None).iterdir())
              for codec in ("zstd", "lz4")}
    shares = ", ".join(f"{100 * size / bench.size:.0f} % with {codec}" for codec, size in packed.items())
    section.table(["measured with", ""], [
        *machine.facts(),
        ["warpfs", machine.run(bench.warpfs, "--version").output.strip()],
        ["peers", ", ".join(versions)],
        ["input", f"{megabytes(bench.size)} of libraries in a tar; packed: {shares}"],
    ])
