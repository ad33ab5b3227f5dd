"""The Python package's side: `python_package.py pack CODEC INPUT OUTPUT` or `unpack INPUT OUTPUT`.

warpcompress 0.1.0 cannot be driven by its front door: it raises BufferError when it closes its memory maps, and calls a
method of zstandard that does not exist. So this does what its compress_file and decompress_file do, in their order,
with its default chunks and as many threads, but leaves the maps to the end of the process and decodes zstd as it
decodes lz4.
"""

import concurrent.futures
import mmap
import sys

from warpcompress import core


def pack(codec, source, target):
    manager = core.CompressionManager(checksum_algo=core.HASH_BLAKE3)
    codec = {name: number for number, name in core.ALGO_NAMES.items()}[codec]
    with open(source, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    data.madvise(mmap.MADV_SEQUENTIAL)
    chunks = list(core._chunk_views(data, manager.chunk_size))
    hasher = core._Hasher(manager.checksum_algo)
    payloads = []
    with concurrent.futures.ThreadPoolExecutor(manager.threads) as threads:
        tasks = [(number, chunk, codec, 0) for number, chunk in enumerate(chunks)]
        for _, payload, chunk in threads.map(manager._compress_job, tasks):
            payloads.append(payload)
            hasher.update(chunk)
    with open(target, "wb") as file:
        file.write(core._pack_header_v2(codec, len(data), list(map(len, payloads)), list(map(len, chunks))))
        for payload in payloads:
            file.write(payload)
        file.write(core._pack_footer(manager.checksum_algo, hasher.digest()))


def unpack(source, target):
    manager = core.CompressionManager()
    with open(source, "rb") as file:
        codec, size, _, packed_sizes, sizes, offset, _ = core._unpack_header(file)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tasks = []
    place = 0
    for number, (packed_size, chunk_size) in enumerate(zip(packed_sizes, sizes)):
        tasks.append((number, memoryview(data)[offset:offset + packed_size], place))
        offset += packed_size
        place += chunk_size
    with open(target, "w+b") as file:
        file.truncate(size)
        output = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE))

        def decode(task):
            number, payload, place = task
            _, chunk = manager._decompress_job((number, payload, codec, None))
            output[place:place + len(chunk)] = chunk

        with concurrent.futures.ThreadPoolExecutor(manager.threads) as threads:
            for _ in threads.map(decode, tasks):
                pass
    checksum, digest = core._unpack_footer(data, offset)
    hasher = core._Hasher(checksum)
    with open(target, "rb") as file:
        while block := file.read(8 << 20):
            hasher.update(block)
    if hasher.digest() != digest:
        sys.exit("the digest does not match")


if sys.argv[1] == "pack":
    pack(*sys.argv[2:])
else:
    unpack(*sys.argv[2:])
