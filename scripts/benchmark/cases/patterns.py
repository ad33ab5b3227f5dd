"""Other ways to read: several streams, backwards, strides, many readers with little memory, again, and past warpfs."""

import statistics

import machine
import mounts
import rounds
from reading import cold, load, numbers, reading, sequential, warpfs
from report import mebibytes, megabytes_per_second, microseconds, per_second
from rounds import Contender

STREAMS = (2, 4, 8)
# How the streams of a mount differ from each other, and the load generator's options for it.
LAYOUTS = {
    "a descriptor each": [],
    "one descriptor, preads of 1 MiB": ["--one-descriptor"],
    "a descriptor each, read in turn": ["--in-turn"],
}


def streams(bench, section):
    forward = ["--pattern", "forward", "--block", 1 << 20]
    one = warpfs(bench, "zstd", None, load(bench, *forward), name="one stream")
    several = {}
    for count in STREAMS:
        for layout, options in LAYOUTS.items():
            several[layout, count] = warpfs(
                bench, "zstd", None, load(bench, *forward, "--readers", count, *options), name=f"{count}, {layout}")
        several["a file each", count] = _files_each(bench, count, forward)
    if not rounds.compare(bench, [one, *several.values()]):
        return
    layouts = [*LAYOUTS, "a file each"]
    section.text(f"One stream: {megabytes_per_second(one.median['rate'])}. Several, in all:")
    section.table(["streams", *layouts], [
        [count, *(megabytes_per_second(several[layout, count].median["rate"]) for layout in layouts)]
        for count in STREAMS
    ])
    for contender in several.values():
        section.higher(f"streams: {contender.name}", contender, one, 0.85, "rate", megabytes_per_second)


def _files_each(bench, count, options):
    most = max(STREAMS)
    parts = bench.inputs.parts("zstd", most)

    def read(mounted):
        files = [mounted.path / f"part-{number}" for number in range(count)]
        sample = numbers(mounted.read(bench.load, "read", *options, "--readers", count, *files))
        # As for all of the input.
        sample["cpu"] *= most / count
        return sample

    return reading(
        bench, f"{count}, a file each", parts, lambda: mounts.warpfs(bench, parts), read, ours=True)


def orders(bench, section):
    reads = 500 if bench.quick else 4000
    stride = 256 << 10
    patterns = {
        # As far apart as in the strides, so that nobody profits from what was decoded before.
        "random": ["--pattern", "random", "--apart", stride],
        "backwards": ["--pattern", "reverse"],
        "in strides of 256 KiB": ["--pattern", "stride", "--stride", stride],
    }
    rows = []
    for codec, chunk_size in (("zstd", None), ("zstd", "128K"), ("lz4", None)):
        contenders = {
            name: warpfs(bench, codec, chunk_size, load(bench, *options, "--reads", reads), name=name)
            for name, options in patterns.items()
        }
        if not rounds.compare(bench, contenders.values()):
            continue
        chunks = f"{codec} {chunk_size or 'default'}"
        rows.append([chunks, *(per_second(each.median["reads"]) for each in contenders.values())])
        for name in list(patterns)[1:]:
            section.higher(
                f"4 KiB {name}, {chunks}", contenders[name], contenders["random"], 1, "reads", per_second)
    section.table(["reads of 4 KiB", *patterns], rows)


def many_readers(bench, section):
    """16 readers of random 4 KiB with a cache an eighth of what they read. The bound is what the chunks decoded in that
    time take to decode in memory with as many threads, and a round trip for every read."""
    readers, time = 16, 1 if bench.quick else 3
    options = ["--pattern", "random", "--readers", readers, "--seconds", time]
    rows = []
    for chunk_size in ("128K", None):
        directory = bench.inputs.packed("zstd", chunk_size)
        decoding = Contender("decoding", lambda directory=directory: _decoding(bench, directory), ours=True)
        small = Contender(
            "small cache",
            lambda directory=directory: _with_cache(bench, directory, bench.size // 8, options),
            ours=True,
        )
        large = Contender(
            "large cache",
            lambda directory=directory: _with_cache(bench, directory, 2 * bench.size, options, filled=True),
            ours=True,
        )
        if not rounds.compare(bench, [decoding, small, large]):
            continue
        decode_rate = decoding.median["rate"]
        # What little is decoded with all of it in the cache is not part of a round trip.
        warm = large.median
        trip = (warm["seconds"] - warm["decoded"] / decode_rate) / warm["count"]
        read = small.median
        bound = read["decoded"] / decode_rate + read["count"] * trip
        chunks = f"zstd {chunk_size or 'default'}"
        rows.append([
            chunks, per_second(read["count"] / read["seconds"]), mebibytes(read["decoded"]), microseconds(trip),
            f"{read['slowest']:.2f}×", mebibytes(read["memory"]),
        ])
        section.target_row(
            f"16 readers, {chunks}, throughput", per_second(read["count"] / read["seconds"]),
            f"{per_second(read['count'] / bound)} (bound)", f"{bound / read['seconds']:.2f}×", "at least 0.90×",
            bound / read["seconds"] >= 0.9)
        section.target_row(
            f"16 readers, {chunks}, the median's rate over the slowest's", "", "", f"{read['slowest']:.2f}×",
            "at most 3.00×", read["slowest"] <= 3)
    section.table(
        ["chunks", "reads", "decoded", "a round trip", "median reader's rate over the slowest's", "server's peak memory"],
        rows,
    )


def _decoding(bench, directory):
    answer = machine.run(
        bench.load, "decode", "--threads", machine.PROCESSORS, directory / "data.tar.warp").answer()
    return {"rate": answer["bytes"] / answer["seconds"]}


def _with_cache(bench, directory, cache_size, options, filled=False):
    def read(mounted):
        if filled:
            mounted.read("cat", mounted.file(), discard=True)
            machine.drop_caches()
        before = _decoded(bench, mounted)
        finished = mounted.read(bench.load, "read", *options, mounted.file())
        answer = finished.answer()
        rates = answer["reader_rates"]
        return {
            "seconds": answer["seconds"],
            "count": answer["reads"],
            "decoded": _decoded(bench, mounted) - before,
            "slowest": statistics.median(rates) / max(min(rates), 1e-9),
            "memory": finished.memory,
        }

    return cold(bench, directory, lambda: mounts.warpfs(bench, directory, "--cache-size", cache_size), read)


def _decoded(bench, mounted):
    return machine.run(bench.warpfs, "stats", "--json", mounted.path).answer()["decoded_bytes"]


def warm(bench, section):
    """Everything read once before: the page cache answers."""
    read = _read_again(bench)
    image = bench.inputs.squashfs("zstd", "128K")
    native = bench.inputs.data_directory()
    ours = warpfs(bench, "zstd", None, read, name="warpfs")
    fuse = reading(bench, "squashfuse 128K", image, lambda: mounts.squashfuse(bench, image), read)
    contenders = rounds.compare(bench, [
        ours,
        fuse,
        reading(bench, "squashfs 128K", image, lambda: mounts.kernel(bench, "squashfs", image), read),
        reading(bench, "limit: the plain file", native, lambda: mounts.plain(native), read, aside=True),
    ])
    _two_rates(section, contenders)
    if ours.median and fuse.median:
        section.higher("warm, sequential", ours, fuse, 1, "sequential", megabytes_per_second, "sequential_cpu")
        section.higher("warm, random 4 KiB", ours, fuse, 1, "reads", per_second, "reads_cpu")


def plain_files(bench, section):
    """A file that is not packed, through a mount of warpfs and without one, in the page cache."""
    read = _read_again(bench)
    directory = bench.inputs.data_directory()
    ours = reading(bench, "warpfs", directory, lambda: mounts.warpfs(bench, directory), read, ours=True)
    native = reading(bench, "native", directory, lambda: mounts.plain(directory), read)
    _two_rates(section, rounds.compare(bench, [ours, native]))
    if ours.median:
        section.higher("plain file, sequential", ours, native, 0.9, "sequential", megabytes_per_second)
        section.higher("plain file, random 4 KiB", ours, native, 0.9, "reads", per_second)


def _read_again(bench):
    """The whole file, after it was read once, and then every page of it in random order."""
    again = sequential(bench)

    def read(mounted):
        mounted.read("cat", mounted.file(), discard=True)
        # Short enough to be disturbed by little.
        in_order = rounds.medians([again(mounted) for _ in range(3)])
        at_random = load(bench)(mounted)
        return {
            "sequential": in_order["rate"],
            "sequential_cpu": in_order["cpu"],
            "reads": at_random["reads"],
            "reads_cpu": at_random["cpu"],
        }

    return read


def _two_rates(section, contenders):
    section.table(["mount", "sequential", "random 4 KiB"], [
        [each.name, megabytes_per_second(each.median["sequential"]), per_second(each.median["reads"])]
        for each in contenders
    ])
