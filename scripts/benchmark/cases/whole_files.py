"""Whole files, packed and unpacked: every tool's output is brought to the disk before the clock stops."""

import charts
import machine
import rounds
from inputs import remove, size_on_disk, squashfs_command
from report import mebibytes, megabytes, seconds
from rounds import Contender

HEADER = ["tool", "time", "CPU", "peak memory", "output"]


def pack(codec):
    def case(bench, section):
        data = bench.inputs.data()
        target = bench.work / "packed"

        def writing(name, *command, ours=False):
            return _writer(name, target, data, lambda: machine.run(*command, sync=target), ours)

        ours = writing(
            "warpfs", bench.warpfs, "pack", "-q", "-f", "--codec", codec, "--checksum", "blake3", "-o", target, data,
            ours=True,
        )
        tools = [
            _writer(name, target, data, lambda command=command: machine.run(*command, data, output=target, sync=target))
            for name, command in _compressors(codec).items()
        ]
        images = [
            writing(f"mksquashfs {block}", *squashfs_command(codec, block, bench.inputs.data_directory(), target))
            for block in ("128K", "1M")
        ]
        python = writing(
            "Python package", bench.python / "python", bench.python_package, "pack", codec, data, target)
        packed = bench.inputs.packed(codec, None) / "data.tar.warp"
        chunk_size = machine.run(bench.warpfs, "info", "--json", packed).answer()[0]["largest_chunk"]
        limit = Contender(
            "limit: encoding in memory",
            lambda: _limit(bench, "encode", "--codec", codec, "--chunk-size", chunk_size, data),
            aside=True,
        )
        hashed = Contender(
            "limit: encoding and BLAKE3 in memory",
            lambda: _limit(bench, "encode", "--hash", "--codec", codec, "--chunk-size", chunk_size, data),
            aside=True,
        )
        contenders = rounds.compare(bench, [ours, *tools, *images, python, limit, hashed])
        remove(target)
        if not contenders:
            return
        _table(section, contenders, HEADER)
        _chart(section, f"pack-{codec}", f"Packing with {codec}, to the disk: seconds", contenders)
        section.slower(f"pack, {codec}, over encoding in memory", ours, limit, 1.12 if codec == "zstd" else 1.15)
        section.faster(f"pack, {codec}, before `{tools[0].name}`", ours, tools[0], 1.25 if codec == "zstd" else 1)
        section.faster(f"pack, {codec}, before the best peer", ours, rounds.fastest(contenders), 1)
        peak = ours.median["memory"]
        section.target_row(f"pack, {codec}, peak memory", mebibytes(peak), "", "", "below 100 MiB", peak < 100 << 20)

    return case


def unpack(codec):
    def case(bench, section):
        inputs = bench.inputs
        target = bench.work / "unpacked"
        packed = inputs.packed(codec, None) / "data.tar.warp"
        # What each tool made of the input, and how it decodes that to its standard output.
        tools = {
            f"{command[0]} -d": (
                inputs.command_packed("lz4" if codec == "lz4" else "zst", *command),
                [*(word for word in command if word not in ("-1", "-3", "-c") and not str(word).startswith("-T")),
                 "-d", "-c"],
            )
            for command in _compressors(codec).values()
        }

        def writing(name, source, *command, ours=False, aside=False, output=None, sync=target):
            return _writer(
                name, target, source, lambda: machine.run(*command, output=output, sync=sync), ours, aside)

        ours = writing("warpfs", packed, bench.warpfs, "unpack", "-q", "-f", "-o", target, packed, ours=True)
        peers = [
            writing(name, source, *command, source, output=target) for name, (source, command) in tools.items()
        ]
        images = []
        for block in ("128K", "1M"):
            image = inputs.squashfs(codec, block)
            command = ["unsquashfs", "-quiet", "-no-progress", "-processors", machine.PROCESSORS, "-dest", target]
            images.append(writing(f"unsquashfs {block}", image, *command, image, sync=target / "data.tar"))
        of_python = inputs.python_packed(codec)
        python = writing(
            "Python package", of_python, bench.python / "python", bench.python_package, "unpack", of_python, target)
        copy = writing("limit: cp of the plain file", inputs.data(), "cp", inputs.data(), target, aside=True)
        to_file = rounds.compare(bench, [ours, *peers, *images, python, copy])
        remove(target)

        ours_discarding = _discarding(
            "warpfs unpack -c", packed, bench.warpfs, "unpack", "-q", "-c", packed, ours=True)
        limit = Contender("limit: decoding in memory", lambda: _limit(bench, "decode", packed), aside=True)
        discarded = rounds.compare(bench, [
            ours_discarding,
            *(_discarding(f"{name} -c", source, *command, source) for name, (source, command) in tools.items()),
            limit,
            Contender(
                "limit: decoding and BLAKE3 in memory", lambda: _limit(bench, "decode", "--hash", packed), aside=True),
        ])
        if not to_file:
            return
        section.text("To a file:")
        _table(section, to_file, HEADER[:-1])
        section.text("To `/dev/null`:")
        _table(section, discarded, HEADER[:-1])
        _chart(section, f"unpack-{codec}", f"Unpacking {codec} to a file, to the disk: seconds", to_file)
        section.faster(f"unpack, {codec}, before `{peers[0].name}`", ours, peers[0], 1.4 if codec == "zstd" else 1)
        fastest = min((each for each in images if each.median), key=lambda each: each.median["seconds"], default=None)
        section.faster(f"unpack, {codec}, before `unsquashfs`", ours, fastest, 1)
        section.slower(f"unpack -c, {codec}, over decoding in memory", ours_discarding, limit, 1.1)

    return case


def _compressors(codec):
    """The command line compressors, by the name they have in tables, at the level the others have."""
    count = machine.PROCESSORS
    if codec == "lz4":
        return {"lz4 -1": ["lz4", "-q", "-1", "-c"]}
    return {
        f"zstd -3 -T{count}": ["zstd", "-q", "-3", f"-T{count}", "-c"],
        f"pzstd -3 -p {count}": ["pzstd", "-q", "-3", "-p", count, "-c"],
    }


def _writer(name, target, source, write, ours=False, aside=False):
    """Somebody who writes a new file from a source in the page cache, while nothing else is waiting for the disk."""
    def run():
        remove(target)
        machine.drop_caches()
        machine.read_back(source)
        sample = _numbers(write())
        sample["output"] = size_on_disk(target)
        return sample

    return Contender(name, run, ours=ours, aside=aside)


def _discarding(name, source, *command, ours=False):
    """Somebody who decodes to nowhere."""
    def run():
        machine.read_back(source)
        return _numbers(machine.run(*command, output="/dev/null"))

    return Contender(name, run, ours=ours)


def _numbers(finished):
    return {"seconds": finished.seconds, "cpu": finished.cpu, "memory": finished.memory}


def _limit(bench, *command):
    finished = machine.run(bench.load, command[0], "--threads", machine.PROCESSORS, *command[1:])
    # Its memory holds the whole file, and its processor time what reading it takes: of no interest.
    return {"seconds": finished.answer()["seconds"], "cpu": None, "memory": None, "output": None}


def _table(section, contenders, header):
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


def _chart(section, name, title, contenders):
    section.chart(name, title, charts.bars(
        title, [("", [(each, each.median["seconds"]) for each in contenders])], seconds))
