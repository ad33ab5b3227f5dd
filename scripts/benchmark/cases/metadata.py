"""Names and attributes of a tree of small files, half of them packed: `find`, `ls -lR` and `du`."""

import machine
import mounts
import rounds
from report import milliseconds
from rounds import Contender

COMMANDS = {"find": ["find"], "ls -lR": ["ls", "-lR"], "du": ["du", "-s"]}


def listings(bench, section):
    count = 4000 if bench.quick else 100_000
    tree = bench.inputs.tree(count)
    image = bench.inputs.tree_image(count)

    def contender(name, source, mount, ours=False, aside=False):
        return Contender(name, lambda: _listed(source, mount), ours=ours, aside=aside)

    ours = contender(
        "warpfs --ttl forever", tree, lambda: mounts.warpfs(bench, tree, "--ttl", "forever"), ours=True)
    squashfs = contender("squashfs", image, lambda: mounts.kernel(bench, "squashfs", image))
    contenders = rounds.compare(bench, [
        ours,
        contender("warpfs", tree, lambda: mounts.warpfs(bench, tree), ours=True),
        squashfs,
        contender("squashfuse", image, lambda: mounts.squashfuse(bench, image)),
        contender("the tree itself", tree, lambda: mounts.plain(tree), aside=True),
    ])
    keys = [f"{command}, {state}" for command in COMMANDS for state in ("cold", "warm")]
    section.text(f"{count:,} files:")
    section.table(["mount", *keys], [
        [each.name, *(milliseconds(each.median[key]) for key in keys)] for each in contenders
    ])
    if ours.median:
        for key in keys:
            wanted = 1.5 if key.endswith("cold") else 1.1
            section.slower(f"{count:,} files, {key}", ours, squashfs, wanted, key, milliseconds)


def _listed(source, mount):
    """Each command twice: on a fresh mount, of which the kernel knows nothing, and again. What is mounted is in memory."""
    machine.drop_caches()
    if source.is_dir():
        machine.run("find", source, "-type", "f", "-exec", "cat", "{}", "+", output="/dev/null")
    else:
        machine.read_back(source)
    sample = {}
    for name, command in COMMANDS.items():
        with mount() as mounted:
            for state in ("cold", "warm"):
                sample[f"{name}, {state}"] = mounted.read(*command, mounted.path, discard=True).seconds
    return sample
