"""The Python package's side of scripts/interop.

warpcompress 0.1.0 cannot be driven by its front door. Its compress_file and decompress_file raise BufferError when they
close their memory maps, because views of them are still alive, and its reader of zstd chunks calls
ZstdDecompressor.decompress_into, which does not exist. So this script calls the functions that do the work, in the order
in which those two call them: _unpack_header, _decompress_job (without a place to decode into, which avoids the missing
method), _unpack_footer and _Hasher to read; _compress_job, _pack_header_v2, _Hasher and _pack_footer to write.
"""

import itertools
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from warpcompress import core

CODECS = {name: number for number, name in core.ALGO_NAMES.items()}
CHECKSUMS = {name: number for number, name in core.HASH_NAMES.items()}


def read(path):
    """What the package's reader makes of a file."""
    data = path.read_bytes()
    with open(path, "rb") as file:
        codec, size, count, packed_sizes, sizes, offset, version = core._unpack_header(file)
    assert version == 2 and len(packed_sizes) == len(sizes) == count
    manager = core.CompressionManager()
    chunks = []
    for index, packed_size in enumerate(packed_sizes):
        payload = data[offset:offset + packed_size]
        _, chunk = manager._decompress_job((index, payload, codec, None))
        assert len(chunk) == sizes[index], f"chunk {index} decodes to {len(chunk)} bytes"
        chunks.append(bytes(chunk))
        offset += packed_size
    original = b"".join(chunks)
    assert len(original) == size
    footer = core._unpack_footer(data, offset)
    if footer:
        checksum, digest = footer
        hasher = core._Hasher(checksum)
        hasher.update(original)
        assert hasher.digest() == digest, "the digest does not match"
    return original, codec, footer[0] if footer else core.HASH_NONE


def write(path, original, codec, checksum, chunk_size, zstd_threads):
    """What the package's writer makes of some bytes."""
    manager = core.CompressionManager(checksum_algo=checksum)
    if not original:
        path.write_bytes(core._pack_header_v2(core.ALGO_SNAPPY, 0, [], []))
        return
    chunks = [original[start:start + chunk_size] for start in range(0, len(original), chunk_size)]
    hasher = core._Hasher(checksum)
    payloads = []
    for index, chunk in enumerate(chunks):
        payloads.append(manager._compress_job((index, chunk, codec, zstd_threads))[1])
        hasher.update(chunk)
    header = core._pack_header_v2(codec, len(original), list(map(len, payloads)), list(map(len, chunks)))
    footer = core._pack_footer(checksum, hasher.digest()) if checksum else b""
    path.write_bytes(header + b"".join(payloads) + footer)


def sample(size):
    """Bytes of which some repeat, some do not, and some are zeros."""
    source = random.Random(size)
    pieces = []
    length = 0
    while length < size:
        kind = source.randrange(3)
        span = source.randrange(1, 20_000)
        if kind == 0:
            piece = source.randbytes(span)
        elif kind == 1:
            piece = bytes(span)
        else:
            piece = (b"%d bottles of beer on the wall, " % source.randrange(100)) * (span // 30 + 1)
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)[:size]


def main():
    warpfs = sys.argv[1]

    def run(*arguments):
        subprocess.run([warpfs, *map(str, arguments)], check=True)

    count = 0
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        original_path, packed, back = directory / "x", directory / "x.warp", directory / "back"
        sizes = [0, 1, 65_536, 65_537, 131_072, 1_000_003]
        for size in sizes:
            original = sample(size)
            original_path.write_bytes(original)
            for codec, checksum in itertools.product(CODECS, CHECKSUMS):
                what = f"{size} bytes, {codec}, {checksum}"
                options = ["-qf", "--codec", codec, "--checksum", checksum, "--chunk-size", "64K"]
                run("pack", *options, original_path)
                decoded, used_codec, used_checksum = read(packed)
                assert decoded == original, f"their reader, our file: {what}"
                if size:
                    assert (used_codec, used_checksum) == (CODECS[codec], CHECKSUMS[checksum]), what
                write(packed, original, CODECS[codec], CHECKSUMS[checksum], 131_072, 0)
                run("verify", "-q", packed)
                run("unpack", "-qf", "-o", back, packed)
                assert back.read_bytes() == original, f"our reader, their file: {what}"
                count += 2

        original = sample(40 << 20)
        original_path.write_bytes(original)
        for options in (
            ["--codec", "zstd", "--zstd-threads", "3", "--chunk-size", "8M"],
            ["--level", "auto"],
            ["--level", "fastest"],
            ["--level", "max", "--brotli-quality", "1"],
            ["--level", "throughput"],
        ):
            run("pack", "-qf", *options, original_path)
            decoded, codec, _ = read(packed)
            assert decoded == original, f"their reader, our file: {options}"
            if options[-1] == "throughput":
                chunk_size, _, _, planned = core._throughput_plan(len(original), 2)
                with open(packed, "rb") as file:
                    header = core._unpack_header(file)
                assert codec == planned and header[4][0] == chunk_size
            if options[-1] == "auto":
                assert codec == core._auto_choose_algorithm(original, 3)
            count += 1
        for zstd_threads in (0, 2):
            write(packed, original, core.ALGO_ZSTD, core.HASH_XXH64, 16 << 20, zstd_threads)
            run("unpack", "-qf", "-o", back, packed)
            assert back.read_bytes() == original, f"our reader, their file: {zstd_threads} zstd threads"
            count += 1
    print(f"interop: {count} files went from one side to the other whole")


main()
