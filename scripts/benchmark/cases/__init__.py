"""The cases: each fills a section of the report. They run in this order."""

from . import about, metadata, patterns, random_reads, remote, scaling, sequential, verification, whole_files

CASES = {
    "about": about.about,
    "pack-zstd": whole_files.pack("zstd"),
    "pack-lz4": whole_files.pack("lz4"),
    "unpack-zstd": whole_files.unpack("zstd"),
    "unpack-lz4": whole_files.unpack("lz4"),
    "sequential-zstd": sequential.as_root("zstd"),
    "sequential-lz4": sequential.as_root("lz4"),
    "sequential-user": sequential.as_ordinary_user,
    "large-chunks": sequential.large_chunks,
    "busy-reader": sequential.busy_reader,
    "random-zstd": random_reads.against_peers("zstd"),
    "random-lz4": random_reads.against_peers("lz4"),
    "random-sizes": random_reads.sizes,
    "chunk-size-zstd": random_reads.chunk_sizes("zstd"),
    "chunk-size-lz4": random_reads.chunk_sizes("lz4"),
    "streams": patterns.streams,
    "orders": patterns.orders,
    "many-readers": patterns.many_readers,
    "verification": verification.verification,
    "warm": patterns.warm,
    "plain-files": patterns.plain_files,
    "metadata": metadata.listings,
    "small-files": metadata.contents,
    "threads": scaling.threads,
    "memory": scaling.memory,
    "mount-time": scaling.mount_time,
    "remote": remote.reads,
    "remote-mounts": remote.several,
}
