"""Measures warpfs beside its peers and writes docs/PERFORMANCE.md; scripts/bench, which installs and builds, starts it."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import report
from cases import CASES
from inputs import Inputs, remove

ROOT = Path(__file__).resolve().parent.parent.parent


class Bench:
    """What every case needs: the programs, the inputs, and how much is to be done."""

    def __init__(self, arguments):
        self.warpfs = arguments.warpfs.resolve()
        self.load = arguments.load.resolve()
        self.python = arguments.python.absolute()
        self.python_package = Path(__file__).resolve().parent / "python_package.py"
        self.work = arguments.work.resolve()
        self.quick = arguments.quick
        self.rounds = arguments.rounds
        self.pairs = arguments.pairs
        self.size = arguments.size
        self.documentation = None if arguments.quick or not arguments.rounds else ROOT / "docs/PERFORMANCE.md"
        self.work.mkdir(parents=True, exist_ok=True)
        self.inputs = Inputs(self)
        self.started = time.monotonic()

    def say(self, text):
        """Tells what is being done, on standard error."""
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", file=sys.stderr, flush=True)


def size(text):
    """Bytes, or with K, M or G."""
    return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0)


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help="a smaller input, one round, in less than two minutes once all is built; changes no page")
    parser.add_argument("--only", nargs="+", metavar="CASE", default=[], help="these cases, or those that begin so")
    parser.add_argument("--list", action="store_true", help="name the cases")
    parser.add_argument("--rounds", type=int,
                        help="how often each contender runs (3); 0 makes the inputs and measures nothing")
    parser.add_argument("--size", type=size, help="bytes of the input, or with M or G (1G)")
    parser.add_argument("--pairs", type=int,
                        help="how many pairs of runs tell of processor seconds as well, where warpfs is close to a peer (15)")
    parser.add_argument("--work", type=Path, help="where inputs and mounts are (target/bench)")
    parser.add_argument("--warpfs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--python", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rounds is None:
        chosen.rounds = 1 if chosen.quick else 3
    if chosen.size is None:
        chosen.size = (96 << 20) if chosen.quick else (1 << 30)
    if chosen.pairs is None:
        chosen.pairs = 0 if chosen.quick else 15
    return chosen


def main():
    chosen = arguments()
    names = [name for name in CASES if not chosen.only or any(name.startswith(only) for only in chosen.only)]
    if chosen.list:
        print("\n".join(CASES))
        return
    unknown = [only for only in chosen.only if not any(name.startswith(only) for name in CASES)]
    if unknown:
        sys.exit(f"scripts/bench: no such case: {' '.join(unknown)}; --list names them")
    if os.geteuid() != 0:
        sys.exit("scripts/bench: only root can drop caches and mount file systems")
    if not chosen.warpfs:
        # What is asked for can be had; scripts/bench has nothing installed and built yet.
        return
    # So that mounts, loop devices and servers end also then. Under nohup, the one stays ignored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    bench = Bench(chosen)
    try:
        measure(bench, names)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for scratch in ("packed", "unpacked"):
            remove(bench.work / scratch)


def measure(bench, names):
    """Runs the cases; prints the sections, and puts them on the page."""
    for name in names:
        bench.say(f"== {name}")
        section = report.Section(bench, name)
        CASES[name](bench, section)
        markdown = section.markdown()
        if not bench.rounds:
            continue
        print(f"## {name}\n\n{markdown}\n", flush=True)
        if bench.documentation:
            report.store(bench.documentation, name, markdown)
            summary = report.table(report.TARGETS, report.all_targets(bench.documentation))
            report.store(bench.documentation, "summary", summary)


main()
