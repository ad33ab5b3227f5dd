"""What checking costs, in processor seconds: with the clock, a few percent drown in the machine's noise."""

import machine
import rounds
from inputs import remove
from reading import sequential, warpfs
from report import seconds
from rounds import Contender

# How much more than without checks reading may take with them, and packing with a checksum than without.
WANTED = {
    "zstd": {"fast": 1.04, "strict": 1.12, "pack": 1.05},
    "lz4": {"fast": 1.08, "strict": 1.20, "pack": 1.10},
}


def verification(bench, section):
    # Pairs, and no rounds.
    section.compared = False
    rows = []
    for codec, wanted in WANTED.items():
        read = sequential(bench)
        reading = {
            mode: warpfs(bench, codec, None, read, "--verify", mode, name=f"--verify {mode}")
            for mode in ("off", "fast", "strict")
        }
        packing = {checksum: _packing(bench, codec, checksum) for checksum in ("none", "blake3")}
        for figure, one, other in (
            ("fast", reading["fast"], reading["off"]),
            ("strict", reading["strict"], reading["off"]),
            ("pack", packing["blake3"], packing["none"]),
        ):
            if not bench.rounds:
                continue
            ratio, ours, without = rounds.cpu_pairs(bench, one, other)
            rows.append([f"{codec}, {one.name}", seconds(ours), f"{other.name}: {seconds(without)}", f"{ratio:.3f}×"])
            section.target_row(
                f"{codec}, {one.name}, processor seconds over {other.name}", seconds(ours), seconds(without),
                f"{ratio:.3f}×", f"at most {wanted[figure]:.2f}×", ratio <= wanted[figure])
    section.text(f"Medians of {max(bench.pairs, 1)} pairs of runs in turn; reading is `cat` through a cold mount, its server included.")
    section.table(["with", "CPU", "without", "ratio of pairs"], rows)


def _packing(bench, codec, checksum):
    data, target = bench.inputs.data(), bench.work / "packed"

    def run():
        remove(target)
        finished = machine.run(
            bench.warpfs, "pack", "-q", "-f", "--codec", codec, "--checksum", checksum, "-o", target, data, sync=target)
        return {"seconds": finished.seconds, "cpu": finished.cpu}

    return Contender(f"pack --checksum {checksum}", run, ours=True)
