"""What grows and what does not: processor time with the threads, memory with the file, mount time with the tree."""

import machine
import mounts
import rounds
from reading import sequential, warpfs
from report import mebibytes, milliseconds, seconds
from rounds import Contender

THREADS = (1, 2, 4, 8)
GIB = 1 << 30


def threads(bench, section):
    """Processor seconds for a GB, with as many threads. Contention would make them grow."""
    data = bench.inputs.data()
    packed = bench.inputs.packed("zstd", None)
    target = bench.work / "packed"

    def job(name, source, *command):
        def run():
            machine.read_back(source)
            return {"cpu": machine.run(*command, source, output="/dev/null").cpu / (bench.size / 1e9)}

        return Contender(name, run, ours=True)

    def mounted(count):
        read = sequential(bench)

        def per_gigabyte(mounted):
            return {"cpu": read(mounted)["cpu"] / (bench.size / 1e9)}

        return warpfs(bench, "zstd", None, per_gigabyte, "--threads", count, name=f"mount {count}")

    jobs = {
        "pack": lambda count: job(
            f"pack {count}", data,
            bench.warpfs, "pack", "-q", "-f", "--codec", "zstd", "--threads", count, "-o", target),
        "unpack -c": lambda count: job(
            f"unpack {count}", packed / "data.tar.warp", bench.warpfs, "unpack", "-q", "-c", "--threads", count),
        "mount, cold, sequential": mounted,
    }
    contenders = {(name, count): make(count) for name, make in jobs.items() for count in THREADS}
    if not rounds.compare(bench, contenders.values()):
        return
    target.unlink()
    section.table(["CPU for a GB", *(f"`--threads {count}`" for count in THREADS)], [
        [name, *(seconds(contenders[name, count].median["cpu"]) for count in THREADS)] for name in jobs
    ])
    for name in jobs:
        one, many = (contenders[name, count].median["cpu"] for count in (THREADS[0], THREADS[-1]))
        section.target_row(
            f"{name}, CPU for a GB, {THREADS[-1]} threads over {THREADS[0]}", seconds(many), seconds(one),
            f"{many / one:.2f}×", "at most 1.15×", many / one <= 1.15)


def memory(bench, section):
    """Peak memory with a small and a large sparse file, with default options."""
    sizes = (GIB, (4 if bench.quick else 100) * GIB)
    jobs = {}
    for size in sizes:
        sparse, packed = bench.inputs.sparse(size), bench.inputs.sparse_packed(size)
        target = bench.work / "packed"
        jobs["pack", size] = lambda sparse=sparse, target=target: machine.run(
            bench.warpfs, "pack", "-q", "-f", "--codec", "zstd", "-o", target, sparse).memory
        jobs["unpack -c", size] = lambda packed=packed: machine.run(
            bench.warpfs, "unpack", "-q", "-c", packed / "data.tar.warp", output="/dev/null").memory
        jobs["mount", size] = lambda packed=packed: _mounted(bench, packed)
    if not bench.rounds:
        return
    section.compared = False
    peaks = {}
    for (name, size), run in jobs.items():
        bench.say(f"{name}, {size // GIB} GiB")
        peaks[name, size] = run()
    target.unlink()
    names = list(dict.fromkeys(name for name, _ in jobs))
    section.table(["peak memory", *(f"{size // GIB} GiB" for size in sizes)], [
        [name, *(mebibytes(peaks[name, size]) for size in sizes)] for name in names
    ])
    for name in names:
        small, large = (peaks[name, size] for size in sizes)
        section.target_row(
            f"{name}, memory, {sizes[1] // GIB} GiB over {sizes[0] // GIB} GiB", mebibytes(large), mebibytes(small),
            f"{large / small:.2f}×", "at most 1.25×", large / small <= 1.25)


def _mounted(bench, packed):
    """4 KiB in a thousand places and then a gigabyte in order: the other way round the kernel would have all of the smaller
    file's places, and not ask for them."""
    machine.drop_caches()
    with mounts.warpfs(bench, packed) as mounted:
        mounted.read(bench.load, "read", "--reads", 1000, mounted.file())
        return mounted.read(
            bench.load, "read", "--pattern", "forward", "--block", 1 << 20, "--reads", 1024, mounted.file()).memory


def mount_time(bench, section):
    """From the start of `warpfs mount` to its end, when the mount answers."""
    counts = (10, 1000, 4000) if bench.quick else (10, 1000, 10_000, 100_000)
    contenders = [Contender(f"{count}", lambda count=count: _mount_and_unmount(bench, count), ours=True)
                  for count in counts]
    for count in counts:
        bench.inputs.tree(count)
    if not rounds.compare(bench, contenders):
        return
    section.table(["files", "mount"], [
        [f"{count:,}", milliseconds(each.median["seconds"])] for count, each in zip(counts, contenders)
    ])
    least, most = contenders[0].median["seconds"], contenders[-1].median["seconds"]
    section.target_row(
        f"mount time, {counts[-1]:,} files over {counts[0]}", milliseconds(most), milliseconds(least),
        f"{most / least:.2f}×", "at most 1.25×", most / least <= 1.25)


def _mount_and_unmount(bench, count):
    machine.drop_caches()
    # The program is in memory, the tree is not.
    machine.run(bench.warpfs, "--version")
    with mounts.mount_point(bench.work) as path:
        # The server lives on with the command's standard output, so nobody waits for that to be closed.
        taken = machine.run(bench.warpfs, "mount", bench.inputs.tree(count), path, output="/dev/null").seconds
        machine.run(bench.warpfs, "umount", path)
    return {"seconds": taken}
