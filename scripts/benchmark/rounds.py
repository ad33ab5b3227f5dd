"""Comparisons: every contender once a round, in turn, so that what disturbs the machine disturbs them all; then medians."""

import math
import statistics
from dataclasses import dataclass, field
from typing import Callable, Optional

# Where two figures differ by less, the machine's noise may be larger: processor seconds of pairs decide.
CLOSE = 1.15


@dataclass
class Contender:
    """Somebody who takes part. `run` does the whole thing once and gives numbers by name: "seconds", "cpu", "memory" and
    whatever the case has. `size` is that of the file it reads or writes, in bytes."""

    name: str
    run: Callable[[], dict]
    ours: bool = False
    # In the table for orientation, and nobody to be compared with: a limit, or another way to run ours.
    aside: bool = False
    size: Optional[int] = None
    median: dict = field(default_factory=dict)


def compare(bench, contenders):
    """Runs the rounds and fills in the medians; those who cannot take part on this machine are left out."""
    samples = {contender.name: [] for contender in contenders}
    absent = {}
    for number in range(bench.rounds):
        for contender in contenders:
            if contender.name in absent:
                continue
            bench.say(f"round {number + 1}: {contender.name}")
            try:
                samples[contender.name].append(contender.run())
            except RuntimeError as error:
                if contender.ours:
                    raise
                absent[contender.name] = error
                bench.say(f"left out: {error}")
    taking_part = [contender for contender in contenders if samples[contender.name]]
    for contender in taking_part:
        contender.median = medians(samples[contender.name])
    return taking_part


def medians(samples):
    """The median of each number that the samples have."""
    return {
        key: statistics.median(sample[key] for sample in samples) if samples[0][key] is not None else None
        for key in samples[0]
    }


def best(contenders, key, largest=False):
    """The best of those that others are compared with; `None` if there is none."""
    peers = [contender for contender in contenders if not contender.ours and not contender.aside]
    if not peers:
        return None
    return (max if largest else min)(peers, key=lambda contender: contender.median[key])


def close(one, other):
    """Whether two figures are too near each other for the clock to decide between them."""
    return one > 0 and other > 0 and abs(math.log(one / other)) < math.log(CLOSE)


def cpu_pairs(bench, one, other):
    """Processor seconds of two contenders over pairs of runs in turn: the median of one's over the other's."""
    ratios = []
    for number in range(bench.pairs):
        bench.say(f"pair {number + 1}: {one.name}, {other.name}")
        ratios.append(one.run()["cpu"] / max(other.run()["cpu"], 1e-6))
    return statistics.median(ratios)
