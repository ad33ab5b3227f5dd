"""A tree of small files, half of them packed: its names and attributes (`find`, `ls -lR` and `du`), and what is in them."""

import machine
import mounts
import rounds
from report import milliseconds
from rounds import Contender

LISTINGS = {"find": ["find"], "ls -lR": ["ls", "-lR"], "du": ["du", "-s"]}


# By one reader, and by two at once.
CONTENTS = {
    "cat": ["sh", "-c", 'find "$0" -type f -exec cat {} +'],
    "two of cat": ["sh", "-c", 'find "$0" -type f -print0 | xargs -0 -P 2 -n 500 cat'],
}


def listings(bench, section):
    """Of a tree half of whose files are packed."""
    count = 4000 if bench.quick else 100_000
    tree, image = bench.inputs.tree(count), bench.inputs.tree_image(count)
    ours = Contender(
        "warpfs --ttl forever", _timed(tree, lambda: mounts.warpfs(bench, tree, "--ttl", "forever"), LISTINGS), ours=True)
    squashfs, *others = _others(bench, tree, image, LISTINGS)
    default = Contender("warpfs", _timed(tree, lambda: mounts.warpfs(bench, tree), LISTINGS), ours=True)
    _table(section, count, LISTINGS, rounds.compare(bench, [ours, default, squashfs, *others]))
    if ours.median:
        for key in _keys(LISTINGS):
            wanted = 1.5 if key.endswith("cold") else 1.1
            section.slower(f"{count:,} files, {key}", ours, squashfs, wanted, key, milliseconds)


def contents(bench, section):
    """Of a tree whose files are packed as far as they shrink."""
    count = 1000 if bench.quick else 10_000
    tree, image = bench.inputs.cuttings_packed(count), bench.inputs.cuttings_image(count)
    ours = Contender("warpfs", _timed(tree, lambda: mounts.warpfs(bench, tree), CONTENTS), ours=True)
    squashfs, squashfuse, aside = _others(bench, bench.inputs.cuttings(count), image, CONTENTS)
    _table(section, count, CONTENTS, rounds.compare(bench, [ours, squashfs, squashfuse, aside]))
    if ours.median and squashfuse.median:
        for key in _keys(CONTENTS):
            section.slower(f"{count:,} small files, {key}", ours, squashfuse, 1, key, milliseconds)


def _others(bench, tree, image, commands):
    return [
        Contender("squashfs", _timed(image, lambda: mounts.kernel(bench, "squashfs", image), commands)),
        Contender("squashfuse", _timed(image, lambda: mounts.squashfuse(bench, image), commands)),
        Contender("the tree itself", _timed(tree, lambda: mounts.plain(tree), commands), aside=True),
    ]


def _keys(commands):
    return [f"{command}, {state}" for command in commands for state in ("cold", "warm")]


def _table(section, count, commands, contenders):
    keys = _keys(commands)
    section.text(f"{count:,} files:")
    section.table(["mount", *keys], [
        [each.name, *(milliseconds(each.median[key]) for key in keys)] for each in contenders
    ])


def _timed(source, mount, commands):
    """Each command twice: on a fresh mount, of which the kernel knows nothing, and again. What is mounted is in memory."""
    def run():
        machine.drop_caches()
        if source.is_dir():
            machine.run("find", source, "-type", "f", "-exec", "cat", "{}", "+", output="/dev/null")
        else:
            machine.read_back(source)
        sample = {}
        for name, command in commands.items():
            with mount() as mounted:
                for state in ("cold", "warm"):
                    sample[f"{name}, {state}"] = mounted.read(*command, mounted.path, discard=True).seconds
        return sample

    return run
