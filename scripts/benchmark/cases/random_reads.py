"""4 KiB at random offsets through a cold mount, no page twice and the same ones for everybody; and what a chunk's size
does to such reads, to scans and to the file's size."""

import charts
import rounds
from reading import load, peers, plain, sequential, warpfs
from report import mebibytes, megabytes, megabytes_per_second, microseconds, per_second, seconds

CHUNKS = {"zstd": ("32K", "64K", "128K", "1M"), "lz4": ("16K", "64K", "128K", "1M")}
# What the peers are packed in for such reads, beside what they are for others.
BLOCKS = ("16K", "64K", "128K", "1M")
CLUSTERS = ("16K", "64K")
# How many times another file a file may be and count as not larger.
SAME_SIZE = 1.005
LENGTHS = (64 << 10, 256 << 10, 1 << 20)
READ_IN_ALL = 256 << 20
# What programs work on, of a file that is larger.
WORKING_SET = 64 << 20
CURVE = ("16K", "32K", "64K", "128K", "256K", "512K", "1M", "2M", "4M")


def against_peers(codec):
    def case(bench, section):
        panels = []
        for readers in (1, 4):
            who = "one reader" if readers == 1 else f"{readers} readers"
            read = random_reads(bench, readers, 500 if bench.quick else 4000)
            ours = [warpfs(bench, codec, chunk_size, read) for chunk_size in CHUNKS[codec]]
            # Smaller files at the price of slower packing: what a file packed for random reads may be.
            ours.append(warpfs(bench, codec, None, read, purpose="random"))
            if codec == "zstd":
                ours.append(warpfs(bench, codec, "64K", read, purpose="random"))
            others = peers(bench, codec, read, BLOCKS, CLUSTERS)
            contenders = rounds.compare(bench, [*ours, *others, plain(bench, read)])
            section.text(f"{who.capitalize()}:")
            section.table(["mount", "file", "reads", "p50", "p99", "CPU", "server's peak memory"], [
                [
                    contender.name,
                    megabytes(contender.size),
                    per_second(contender.median["reads"]),
                    microseconds(contender.median["p50"]),
                    microseconds(contender.median["p99"]),
                    seconds(contender.median["cpu"]),
                    mebibytes(contender.median["memory"]),
                ]
                for contender in contenders
            ])
            panels.append((who, [(each, each.median["reads"]) for each in contenders]))
            _target(section, codec, who, ours, contenders)
        section.chart(
            f"random-{codec}",
            f"Cold random reads of {codec}",
            charts.bars(f"Cold random reads of 4 KiB through a mount, {codec}", panels, per_second),
        )

    return case


def _target(section, codec, who, ours, contenders):
    """Against the best peer, with the best of our files that are not larger than its; if there is none, with the
    smallest, and says so."""
    for peer, among in rounds.best(contenders, "reads"):
        matches = [each for each in ours if each.size <= SAME_SIZE * peer.size]
        figure = f"cold, random 4 KiB, {codec}, {who}{among}"
        if not matches:
            smallest = min(each.size for each in ours)
            figure += f" (ours is {100 * smallest / peer.size - 100:.1f} % larger)"
            matches = [each for each in ours if each.size <= SAME_SIZE * smallest]
        match = max(matches, key=lambda each: each.median["reads"])
        section.higher(figure, match, peer, 2, "reads", per_second)


def random_reads(bench, readers, reads):
    return load(bench, "--pattern", "random", "--readers", readers, "--reads", reads)


def working_set(bench, section):
    """All of a part of the file, page by page in random order: how soon what is come back to costs no round trip."""
    rows = {}
    for codec in ("zstd", "lz4"):
        for readers in (1, 4):
            part = WORKING_SET // (8 if bench.quick else 1)
            read = load(bench, "--pattern", "random", "--readers", readers, "--within", part)
            contenders = rounds.compare(bench, [warpfs(bench, codec, None, read), *peers(bench, codec, read)])
            if not contenders:
                return
            who = "one reader" if readers == 1 else f"{readers} readers"
            for each in contenders:
                rows.setdefault((each.name, megabytes(each.size)), {})[who] = per_second(each.median["reads"])
            for peer, among in rounds.best(contenders, "reads"):
                section.higher(f"cold, all of {WORKING_SET >> 20} MiB at random, {codec}, {who}{among}", contenders[0], peer, 1,
                               "reads", per_second)
    section.table(["mount", "file", "one reader", "4 readers"], [
        [*mount, *rates.values()] for mount, rates in rows.items()
    ])


def sizes(bench, section):
    """Longer reads, each of more than one chunk but the shortest."""
    columns = {}
    for length in LENGTHS:
        reads = max(READ_IN_ALL // (8 if bench.quick else 1) // length, 1)
        read = load(bench, "--pattern", "random", "--block", length, "--reads", reads)
        contenders = rounds.compare(bench, [warpfs(bench, "zstd", None, read), *peers(bench, "zstd", read)])
        if not contenders:
            return
        for each in contenders:
            columns.setdefault((each.name, megabytes(each.size)), []).append(
                megabytes_per_second(each.median["rate"]))
        for peer, among in rounds.best(contenders, "rate"):
            figure = f"cold, random {length >> 10} KiB, zstd, one reader{among}"
            section.higher(figure, contenders[0], peer, 1, "rate", megabytes_per_second)
    section.table(["mount", "file", *(f"{length >> 10} KiB" for length in LENGTHS)], [
        [*mount, *rates] for mount, rates in columns.items()
    ])


def chunk_sizes(codec):
    def case(bench, section):
        scan = sequential(bench)
        # Only one read in each of the largest chunks: what was decoded for another is no part of a chunk's latency.
        lone_reads = load(bench, "--pattern", "random", "--apart", 4 << 20)
        scans = [warpfs(bench, codec, chunk_size, scan) for chunk_size in CURVE]
        randoms = [warpfs(bench, codec, chunk_size, lone_reads, name=each.name + " at random")
                   for chunk_size, each in zip(CURVE, scans)]
        if not rounds.compare(bench, [*scans, *randoms]):
            return
        section.table(["chunks", "file", "of the original", "scan", "random 4 KiB, one reader", "p50", "p99"], [
            [
                chunk_size,
                megabytes(scan.size),
                f"{100 * scan.size / bench.size:.1f} %",
                megabytes_per_second(scan.median["rate"]),
                per_second(random.median["reads"]),
                microseconds(random.median["p50"]),
                microseconds(random.median["p99"]),
            ]
            for chunk_size, scan, random in zip(CURVE, scans, randoms)
        ])
        section.chart(
            f"chunk-size-{codec}",
            f"What the chunk size does to {codec}",
            charts.curves(f"What the chunk size does: {codec}", CURVE, [
                ("file size, % of the original", [100 * each.size / bench.size for each in scans], "{:.0f}".format),
                ("scan, MB/s", [each.median["rate"] / 1e6 for each in scans], "{:,.0f}".format),
                ("random 4 KiB, reads a second", [each.median["reads"] for each in randoms], "{:,.0f}".format),
            ]),
        )

    return case
