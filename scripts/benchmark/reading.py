"""Those who read through a mount: the kernel's caches of the mount are empty, the compressed file is in the page cache."""

import machine
import mounts
from inputs import size_on_disk
from rounds import Contender


def cold(bench, source, mount, read):
    """Drops the caches, reads the compressed file back, mounts and reads."""
    machine.drop_caches()
    files = source.iterdir() if source.is_dir() else [source]
    machine.read_back(*files)
    with mount() as mounted:
        return read(mounted)


def sequential(bench, command="cat"):
    """The whole file, as `cat` reads it, or another command."""
    def read(mounted):
        finished = mounted.read(command, mounted.file(), discard=True)
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


def warpfs(bench, codec, chunk_size, read, *options, purpose=None, user=None, name=None):
    directory = bench.inputs.packed(codec, chunk_size, purpose)
    aim = f", --for {purpose}" if purpose else ""
    return reading(
        bench,
        name or f"warpfs {codec} {chunk_size or 'default'}{aim}",
        directory,
        lambda: mounts.warpfs(bench, directory, *options, user=user),
        read,
        ours=True,
    )


def peers(bench, codec, read, blocks=("128K", "1M"), clusters=("64K",)):
    """Everybody who can show a file packed with this codec: squashfs in such blocks, erofs in such clusters."""
    contenders = []
    for block in blocks:
        image = bench.inputs.squashfs(codec, block)
        contenders += [
            reading(bench, f"squashfs {codec} {block}", image,
                    lambda image=image: mounts.kernel(bench, "squashfs", image), read),
            reading(bench, f"squashfuse {codec} {block}", image,
                    lambda image=image: mounts.squashfuse(bench, image), read),
        ]
    if codec == "lz4":
        for cluster in clusters:
            image = bench.inputs.erofs(cluster)
            contenders.append(
                reading(bench, f"erofs lz4 {cluster}", image,
                        lambda image=image: mounts.kernel(bench, "erofs", image), read))
    else:
        contenders += _btrfs(bench, read)
    return contenders


def _btrfs(bench, read):
    # Its image is made by the kernel, which may not know it.
    try:
        image = bench.inputs.btrfs()
    except RuntimeError as error:
        bench.say(f"btrfs is left out: {error}")
        return []
    return [reading(bench, "btrfs zstd:3", image, lambda: mounts.kernel(bench, "btrfs", image), read)]


def ratarmount(bench, read):
    archive = bench.inputs.frames()
    return reading(bench, "ratarmount", archive.parent, lambda: mounts.ratarmount(bench, archive), read)


def plain(bench, read):
    directory = bench.inputs.data_directory()
    return reading(
        bench, "limit: the plain file", directory, lambda: mounts.plain(directory), read, aside=True)


def load(bench, *options):
    """A run of the load generator: what it says, with processor time and memory."""
    def read(mounted):
        finished = mounted.read(bench.load, "read", *options, mounted.file())
        return numbers(finished)

    return read


def numbers(finished):
    """What the load generator measured, as a sample."""
    answer = finished.answer()
    return {
        "seconds": answer["seconds"],
        "rate": answer["bytes"] / answer["seconds"],
        "reads": answer["reads"] / answer["seconds"],
        "first_byte": answer["first_byte"],
        "p50": answer["p50"],
        "p99": answer["p99"],
        "cpu": finished.cpu,
        "memory": finished.memory,
    }
