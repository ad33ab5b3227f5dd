"""Reads through mounts whose kernel caches are empty, while the compressed file is in the page cache."""

import machine
import mounts
import rounds
from inputs import size_on_disk
from report import mebibytes, megabytes, megabytes_per_second, microseconds, per_second, seconds
from rounds import Contender

SEQUENTIAL_CHUNKS = ("128K", "1M")


def cold(bench, source, mount, read):
    """Drops the caches, reads the compressed file back, mounts and reads."""
    machine.drop_caches()
    files = source.iterdir() if source.is_dir() else [source]
    machine.read_back(*files)
    with mount() as mounted:
        return read(mounted)


def sequential(bench):
    """The whole file, as `cat` reads it."""
    def read(mounted):
        finished = mounted.read("cat", mounted.file())
        return {
            "seconds": finished.seconds,
            "rate": bench.size / finished.seconds,
            "cpu": finished.cpu,
            "memory": finished.memory,
        }

    return read


def reading(bench, name, source, mount, read, ours=False, aside=False):
    """Somebody who reads through a mount of this source."""
    return Contender(
        name, lambda: cold(bench, source, mount, read), ours=ours, aside=aside, size=size_on_disk(source))


def warpfs(bench, codec, chunk_size, read, *options, level=3, user=None, name=None):
    directory = bench.inputs.packed(codec, chunk_size, level)
    at_level = f", level {level}" if level != 3 else ""
    return reading(
        bench,
        name or f"warpfs {codec} {chunk_size}{at_level}",
        directory,
        lambda: mounts.warpfs(bench, directory, *options, user=user),
        read,
        ours=True,
    )


def peers(bench, codec, read):
    """Everybody who can show a file packed with this codec."""
    contenders = []
    for block in ("128K", "1M"):
        image = bench.inputs.squashfs(codec, block)
        contenders += [
            reading(bench, f"squashfs {codec} {block}", image,
                    lambda image=image: mounts.kernel(bench, "squashfs", image), read),
            reading(bench, f"squashfuse {codec} {block}", image,
                    lambda image=image: mounts.squashfuse(bench, image), read),
        ]
    if codec == "lz4":
        image = bench.inputs.erofs()
        contenders.append(
            reading(bench, "erofs lz4 64K", image, lambda: mounts.kernel(bench, "erofs", image), read))
    else:
        image = bench.inputs.btrfs()
        contenders.append(
            reading(bench, "btrfs zstd:3", image, lambda: mounts.kernel(bench, "btrfs", image), read))
    return contenders


def ratarmount(bench, read):
    archive = bench.inputs.frames()
    return reading(bench, "ratarmount", archive.parent, lambda: mounts.ratarmount(bench, archive), read)


def plain(bench, read):
    directory = bench.inputs.data_directory()
    return reading(
        bench, "limit: the plain file", directory, lambda: mounts.plain(directory), read, aside=True)


def sequential_zstd(bench, section):
    _sequential(bench, section, "zstd")


def sequential_lz4(bench, section):
    _sequential(bench, section, "lz4")


def _sequential(bench, section, codec):
    read = sequential(bench)
    ours = [warpfs(bench, codec, chunk_size, read) for chunk_size in SEQUENTIAL_CHUNKS]
    others = peers(bench, codec, read)
    if codec == "zstd":
        others.append(ratarmount(bench, read))
    contenders = rounds.compare(bench, [*ours, *others, plain(bench, read)])
    sequential_table(section, contenders)
    best = rounds.best(contenders, "rate", largest=True)
    for each in ours:
        if each.median:
            section.higher(f"cold, sequential, {each.name}", each, best, 1.6, "rate", megabytes_per_second)


def sequential_table(section, contenders):
    section.table(["mount", "file", "rate", "time", "CPU", "server's peak memory"], [
        [
            contender.name,
            megabytes(contender.size),
            megabytes_per_second(contender.median["rate"]),
            seconds(contender.median["seconds"]),
            seconds(contender.median["cpu"]),
            mebibytes(contender.median["memory"]),
        ]
        for contender in contenders
    ])


def random_reads(bench, readers):
    """4 KiB at random offsets, each read once: the same ones for everybody."""
    reads = 500 if bench.quick else 4000

    def read(mounted):
        finished = mounted.read(
            bench.load, "read", "--pattern", "random", "--readers", readers, "--reads", reads, mounted.file())
        answer = finished.answer()
        return {
            "seconds": answer["seconds"],
            "rate": answer["reads"] / answer["seconds"],
            "p50": answer["p50"],
            "p99": answer["p99"],
            "cpu": finished.cpu,
            "memory": finished.memory,
        }

    return read


def random_zstd(bench, section):
    _random(bench, section, "zstd", ("32K", "64K", "128K", "1M"))


def random_lz4(bench, section):
    _random(bench, section, "lz4", ("16K", "64K", "128K", "1M"))


def _random(bench, section, codec, chunk_sizes):
    for readers in (1, 4):
        read = random_reads(bench, readers)
        ours = [warpfs(bench, codec, chunk_size, read) for chunk_size in chunk_sizes]
        contenders = rounds.compare(bench, [*ours, *peers(bench, codec, read), plain(bench, read)])
        who = "One reader" if readers == 1 else f"{readers} readers"
        section.text(f"{who}:")
        section.table(["mount", "file", "reads", "p50", "p99", "CPU", "server's peak memory"], [
            [
                contender.name,
                megabytes(contender.size),
                per_second(contender.median["rate"]),
                microseconds(contender.median["p50"]),
                microseconds(contender.median["p99"]),
                seconds(contender.median["cpu"]),
                mebibytes(contender.median["memory"]),
            ]
            for contender in contenders
        ])
        best = rounds.best(contenders, "rate", largest=True)
        if best is None:
            continue
        # Only a file that is not larger is a match for the best peer's.
        matches = [each for each in ours if each.median and each.size <= best.size]
        if matches:
            match = max(matches, key=lambda each: each.median["rate"])
            section.higher(
                f"cold, random 4 KiB, {codec}, {who.lower()}", match, best, 2, "rate", per_second)
