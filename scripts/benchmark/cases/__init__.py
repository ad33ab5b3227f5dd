"""The cases: each fills a section of the report. They run in this order."""

from . import reads, whole_files

CASES = {
    "pack-zstd": whole_files.pack_zstd,
    "pack-lz4": whole_files.pack_lz4,
    "unpack-zstd": whole_files.unpack_zstd,
    "unpack-lz4": whole_files.unpack_lz4,
    "sequential-zstd": reads.sequential_zstd,
    "sequential-lz4": reads.sequential_lz4,
    "random-zstd": reads.random_zstd,
    "random-lz4": reads.random_lz4,
}
