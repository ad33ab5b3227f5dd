"""A whole file read from start to end through a cold mount: as root, as an ordinary user, in large chunks, and by somebody
who works on it."""

import charts
import machine
import mounts
import rounds
from reading import load, peers, plain, ratarmount, reading, sequential, warpfs
from report import mebibytes, megabytes, megabytes_per_second, milliseconds, per_second, seconds

# Without a size: what pack makes of it by itself.
CHUNKS = (None, "128K", "1M")
LARGE_CHUNKS = ("4M", "16M", "32M")


def as_root(codec):
    def case(bench, section):
        read = sequential(bench)
        ours = [warpfs(bench, codec, chunk_size, read) for chunk_size in CHUNKS]
        others = peers(bench, codec, read)
        if codec == "zstd":
            others.append(ratarmount(bench, read))
        contenders = rounds.compare(bench, [*ours, *others, plain(bench, read)])
        _table(section, contenders)
        section.chart(
            f"sequential-{codec}",
            f"Cold sequential reads of {codec}",
            charts.bars(
                f"Cold sequential reads through a mount, {codec}",
                [("", [(each, each.median["rate"]) for each in contenders])],
                megabytes_per_second,
            ),
        )
        _targets(section, codec, ours[:1], contenders, 1.6)

    return case


def as_ordinary_user(bench, section):
    """An ordinary user's mount keeps the kernel's readahead of 128 KiB. The peers are FUSE servers of the same user,
    and what root mounted for everybody, read by that user."""
    user = machine.ORDINARY_USER
    with machine.fuse_for_everybody(), mounts.open_to_all(bench) as bench:
        read = sequential(bench)
        for codec in ("zstd", "lz4"):
            ours = [warpfs(bench, codec, chunk_size, read, user=user) for chunk_size in CHUNKS]
            others = []
            for block in ("128K", "1M"):
                image = bench.inputs.squashfs(codec, block)
                others += [
                    reading(bench, f"squashfuse {codec} {block}", image,
                            lambda image=image: mounts.squashfuse(bench, image, user), read),
                    reading(bench, f"squashfs {codec} {block}", image,
                            lambda image=image: mounts.kernel(bench, "squashfs", image, user=user), read),
                ]
            contenders = rounds.compare(bench, [*ours, *others])
            _table(section, contenders)
            _targets(section, f"{codec}, ordinary user", ours[:1], contenders, 1.4)


def large_chunks(bench, section):
    """Chunks as the Python package makes them, of whole files and of large ones with `--level throughput`."""
    read = sequential(bench)
    for codec in ("zstd", "lz4"):
        ours = [warpfs(bench, codec, chunk_size, read) for chunk_size in LARGE_CHUNKS]
        best_blocks = [each for each in peers(bench, codec, read) if "1M" not in each.name and "btrfs" not in each.name]
        contenders = rounds.compare(bench, [*ours, *best_blocks])
        _table(section, contenders)
        _targets(section, f"{codec}, large chunks", ours, contenders, 1.6)
    first = load(bench, "--pattern", "forward", "--reads", 1)
    ours = [warpfs(bench, codec, chunk_size, first) for codec in ("zstd", "lz4") for chunk_size in ("1M", "32M")]
    contenders = rounds.compare(bench, ours)
    section.text("Time from opening the file to its first 4 KiB:")
    section.table(["mount", "first byte"], [
        [contender.name, milliseconds(contender.median["first_byte"])] for contender in contenders
    ])
    for contender in contenders:
        if contender.name == "warpfs zstd 32M":
            value = contender.median["first_byte"]
            section.target_row(
                "first byte of a 32 MiB zstd chunk", milliseconds(value), "", "", "below 3 ms", value < 0.003)


def disk_image(bench, section):
    """A file that is a hole for the most part, as disk images are."""
    contenders = rounds.compare(bench, _special(
        bench, sequential(bench), [("zstd", None), ("zstd", "4M"), ("lz4", None), ("lz4", "4M")],
        lambda *how: bench.inputs.sparse_packed(bench.size, *how), bench.inputs.sparse_image(bench.size),
        bench.inputs.sparse_directory(bench.size)))
    _table(section, contenders)
    _targets(section, "a disk image", [each for each in contenders if each.ours], contenders, 1)


def noise(bench, section):
    """Data that does not compress, in order and at random."""
    ways = [("zstd", None), ("zstd", "1M"), ("zstd", "4M"), ("zstd", "16M"), ("lz4", "4M")]
    at_random = load(bench, "--pattern", "random", "--apart", 128 << 10, "--reads", 500 if bench.quick else 2000)
    in_order, random = (
        rounds.compare(bench, _special(
            bench, read, ways, bench.inputs.noise_packed, bench.inputs.noise_image(), bench.inputs.noise_directory()))
        for read in (sequential(bench), at_random)
    )
    random = {each.name: each.median["reads"] for each in random}
    section.table(["mount", "file", "rate", "CPU", "random 4 KiB"], [
        [each.name, megabytes(each.size), megabytes_per_second(each.median["rate"]), seconds(each.median["cpu"]),
         per_second(random[each.name])]
        for each in in_order
    ])
    _targets(section, "noise", [each for each in in_order if each.ours], in_order, 1)


def _special(bench, read, ways, packed, image, plain_directory):
    """An input of its own: packed by warpfs in these ways, in an image for the others, and as it is."""
    ours = []
    for codec, chunk_size in ways:
        directory = packed(codec, chunk_size)
        ours.append(reading(
            bench, f"warpfs {codec} {chunk_size or 'default'}", directory,
            lambda directory=directory: mounts.warpfs(bench, directory), read, ours=True))
    return [
        *ours,
        reading(bench, "squashfs zstd 128K", image, lambda: mounts.kernel(bench, "squashfs", image), read),
        reading(bench, "squashfuse zstd 128K", image, lambda: mounts.squashfuse(bench, image), read),
        reading(
            bench, "limit: the plain file", plain_directory, lambda: mounts.plain(plain_directory), read, aside=True),
    ]


def busy_reader(bench, section):
    """`b2sum` needs a processor for about as long as decoding zstd does: the one is to go on beside the other."""
    read = sequential(bench, "b2sum")
    for codec in ("zstd", "lz4"):
        ours = warpfs(bench, codec, None, read)
        others = [each for each in peers(bench, codec, read) if "btrfs" not in each.name]
        contenders = rounds.compare(bench, [ours, *others, plain(bench, read)])
        _table(section, contenders)
        _targets(section, f"{codec}, by b2sum", [ours], contenders, 1)


def _targets(section, what, ours, contenders, wanted):
    for peer, among in rounds.best(contenders, "rate"):
        for each in ours:
            section.higher(
                f"cold, sequential, {what}, {each.name}{among}", each, peer, wanted, "rate", megabytes_per_second)


def _table(section, contenders):
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
