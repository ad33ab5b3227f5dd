"""Whole files, packed and unpacked: every tool's output is brought to the disk before the clock stops."""

import machine
import rounds
from inputs import remove, size_on_disk, squashfs_command
from report import mebibytes, megabytes, seconds
from rounds import Contender

HEADER = ["tool", "time", "CPU", "peak memory", "output"]
CHUNK = "1M"


def pack_zstd(bench, section):
    processors = machine.PROCESSORS
    _pack(bench, section, "zstd", 1.12, ["--checksum", "blake3"], [
        _to_stdout(bench, f"zstd -3 -T{processors}", "zstd", "-q", "-3", f"-T{processors}", "-c"),
        _to_stdout(bench, f"pzstd -3 -p {processors}", "pzstd", "-q", "-3", "-p", processors, "-c"),
    ])


def pack_lz4(bench, section):
    _pack(bench, section, "lz4", 1.15, [], [_to_stdout(bench, "lz4 -1", "lz4", "-q", "-1", "-c")])


def _pack(bench, section, codec, within, options, command_line_tools):
    data = bench.inputs.data()
    target = bench.work / "packed"

    def writing(name, *command, ours=False):
        return _writer(bench, name, target, data, lambda: machine.run(*command, sync=target), ours)

    ours = writing(
        "warpfs", bench.warpfs, "pack", "-q", "-f", "--codec", codec, "--chunk-size", CHUNK, *options, "-o", target, data,
        ours=True,
    )
    peers = command_line_tools + [
        writing(f"mksquashfs {block}", *squashfs_command(codec, block, bench.inputs.data_directory(), target))
        for block in ("128K", "1M")
    ] + [writing("Python package", bench.python / "python", bench.python_package, "pack", codec, data, target)]
    limit = Contender(
        "limit: encoding in memory",
        lambda: _limit(bench, "encode", "--codec", codec, "--chunk-size", str(1 << 20), data),
        aside=True,
    )
    contenders = rounds.compare(bench, [ours, *peers, limit])
    remove(target)
    _table(section, contenders, "output")
    if ours.median:
        section.slower(f"pack, {codec}, over encoding in memory", ours, limit, within)
        if codec == "zstd":
            section.faster("pack, zstd, before `zstd -3`", ours, peers[0], 1.25)
        section.faster(f"pack, {codec}, before the best peer", ours, rounds.best(contenders, "seconds"), 1)
        _memory_target(section, f"pack, {codec}, peak memory", ours)


def unpack_zstd(bench, section):
    inputs = bench.inputs
    processors = machine.PROCESSORS
    of_zstd = inputs.command_packed("zst", "zstd", "-q", "-3", f"-T{processors}", "-c")
    of_pzstd = inputs.command_packed("zst", "pzstd", "-q", "-3", "-p", processors, "-c")
    _unpack(bench, section, "zstd", {
        "zstd -d": (of_zstd, ["zstd", "-q", "-d", "-c"]),
        f"pzstd -d -p {processors}": (of_pzstd, ["pzstd", "-q", "-d", "-p", processors, "-c"]),
    })


def unpack_lz4(bench, section):
    of_lz4 = bench.inputs.command_packed("lz4", "lz4", "-q", "-1", "-c")
    _unpack(bench, section, "lz4", {"lz4 -d": (of_lz4, ["lz4", "-q", "-d", "-c"])})


def _unpack(bench, section, codec, tools):
    inputs = bench.inputs
    target = bench.work / "unpacked"
    packed = inputs.packed(codec, CHUNK) / "data.tar.warp"
    python_packed = inputs.python_packed(codec)
    python = [bench.python / "python", bench.python_package, "unpack"]

    def writing(name, source, *command, ours=False, output=None, sync=target, aside=False):
        return _writer(
            bench, name, target, source, lambda: machine.run(*command, output=output, sync=sync), ours, aside)

    ours = writing("warpfs", packed, bench.warpfs, "unpack", "-q", "-f", "-o", target, packed, ours=True)
    peers = [
        writing(name, source, *command, source, output=target) for name, (source, command) in tools.items()
    ]
    squashfs = []
    for block in ("128K", "1M"):
        image = inputs.squashfs(codec, block)
        command = ["unsquashfs", "-quiet", "-no-progress", "-processors", machine.PROCESSORS, "-force", "-dest", target]
        squashfs.append(writing(f"unsquashfs {block}", image, *command, image, sync=target / "data.tar"))
    peers += [*squashfs, writing("Python package", python_packed, *python, python_packed, target)]
    copy = writing("limit: cp of the plain file", inputs.data(), "cp", inputs.data(), target, aside=True)
    contenders = rounds.compare(bench, [ours, *peers, copy])
    remove(target)
    section.text("To a file:")
    _table(section, contenders)

    def discarding(name, source, *command, ours=False):
        def run():
            machine.read_back(source)
            return _numbers(machine.run(*command, output="/dev/null"))
        return Contender(name, run, ours=ours)

    ours_discarding = discarding(
        "warpfs unpack -c", packed, bench.warpfs, "unpack", "-q", "-c", packed, ours=True)
    limit = Contender("limit: decoding in memory", lambda: _limit(bench, "decode", packed), aside=True)
    discarded = rounds.compare(bench, [
        ours_discarding,
        *(discarding(name, source, *command, source) for name, (source, command) in tools.items()),
        limit,
    ])
    section.text("To `/dev/null`:")
    _table(section, discarded)
    if ours.median:
        section.faster(f"unpack, {codec}, before `{peers[0].name}`", ours, peers[0], 1.4)
        fastest = min((each for each in squashfs if each.median), key=lambda each: each.median["seconds"])
        section.faster(f"unpack, {codec}, before `unsquashfs`", ours, fastest, 1)
        section.faster(f"unpack, {codec}, before the best peer", ours, rounds.best(contenders, "seconds"), 1)
        section.slower(f"unpack -c, {codec}, over decoding in memory", ours_discarding, limit, 1.1)


def _to_stdout(bench, name, *command):
    """A compressor that writes to its standard output, as all of them can."""
    target = bench.work / "packed"
    data = bench.inputs.data()
    return _writer(
        bench, name, target, data, lambda: machine.run(*command, data, output=target, sync=target))


def _writer(bench, name, target, source, write, ours=False, aside=False):
    """Somebody who writes a new file from a source in the page cache, while nothing else is waiting for the disk."""
    def run():
        remove(target)
        machine.drop_caches()
        machine.read_back(source)
        sample = _numbers(write())
        sample["output"] = size_on_disk(target)
        return sample

    return Contender(name, run, ours=ours, aside=aside)


def _numbers(finished):
    return {"seconds": finished.seconds, "cpu": finished.cpu, "memory": finished.memory}


def _limit(bench, *command):
    finished = machine.run(bench.load, command[0], "--threads", machine.PROCESSORS, *command[1:])
    # Its memory holds the whole file, and its processor time what reading it takes: of no interest.
    return {"seconds": finished.answer()["seconds"], "cpu": None, "memory": None, "output": None}


def _table(section, contenders, output=None):
    header = HEADER if output else HEADER[:-1]
    section.table(header, [
        [
            contender.name,
            seconds(contender.median["seconds"]),
            seconds(contender.median["cpu"]) if contender.median["cpu"] is not None else "",
            mebibytes(contender.median["memory"]),
            megabytes(contender.median.get("output")),
        ][:len(header)]
        for contender in contenders
    ])


def _memory_target(section, figure, ours):
    peak = ours.median["memory"]
    section.target_row(figure, mebibytes(peak), "", "", "below 100 MiB", peak < 100 << 20)
