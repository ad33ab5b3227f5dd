"""Comparisons: every contender once a round, in turn, so that what disturbs the machine disturbs them all; then
medians. Each round has an order of its own, so that nobody is always the first, or comes always behind the same one: who read
much leaves the machine other memory than who read little.
"""

import math
import random
import statistics
from dataclasses import dataclass, field
from typing import Callable, Optional

# Where two figures differ by less, the machine's noise may be larger: processor seconds of pairs are told as well.
CLOSE = 1.15

# How many times the smallest peer's file another's is when they are no longer alike.
MUCH_LARGER = 1.25


@dataclass
class Contender:
    """Somebody who takes part. `run` does the whole thing once and gives numbers by name: "seconds", "cpu", "memory"
    and whatever the case has. `size` is that of the file it reads or writes, in bytes."""

    name: str
    run: Callable[[], dict]
    ours: bool = False
    # In the table for orientation, and nobody to be compared with: a limit, or another way to run ours.
    aside: bool = False
    size: Optional[int] = None
    median: dict = field(default_factory=dict)


def compare(bench, contenders):
    """Runs the rounds and fills in the medians; those who cannot take part on this machine are left out."""
    contenders = list(contenders)
    samples = {contender.name: [] for contender in contenders}
    absent = {}
    for number in range(bench.rounds):
        # The same ones in every run.
        for contender in random.Random(number).sample(contenders, len(contenders)):
            if contender.name in absent:
                continue
            try:
                sample = contender.run()
                samples[contender.name].append(sample)
                bench.say(f"round {number + 1}: {contender.name}: {next(iter(sample.values())):.4g}")
            except (OSError, RuntimeError) as error:
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


def peers(contenders):
    """Those that others are compared with."""
    return [contender for contender in contenders if not contender.ours and not contender.aside]


def fastest(contenders):
    """The peer that needs the least time, if there is any."""
    return min(peers(contenders), key=lambda contender: contender.median["seconds"], default=None)


def best(contenders, key):
    """The peers with the highest rate, with what to say of them: the best of all, and if that one's file is much larger
    than others', because it left much of it as it was, also the best of the others."""
    ranked = sorted(peers(contenders), key=lambda contender: contender.median[key], reverse=True)
    if not ranked:
        return []
    limit = MUCH_LARGER * min(contender.size for contender in ranked)
    similar = next(contender for contender in ranked if contender.size <= limit)
    if similar is ranked[0]:
        return [(similar, "")]
    return [(ranked[0], ""), (similar, ", files of like size")]


def close(one, other):
    """Whether two figures are too near each other for the clock to decide between them."""
    return one > 0 and other > 0 and abs(math.log(one / other)) < math.log(CLOSE)


def cpu_pairs(bench, one, other, key="cpu"):
    """Processor seconds of two contenders over pairs of runs in turn, each pair beginning with another: the median of
    one's over the other's, and the medians of both."""
    samples = []
    for number in range(max(bench.pairs, 1)):
        bench.say(f"pair {number + 1}: {one.name}, {other.name}")
        order = [one, other] if number % 2 == 0 else [other, one]
        taken = {contender.name: contender.run()[key] for contender in order}
        samples.append((taken[one.name], max(taken[other.name], 1e-6)))
    return (
        statistics.median(ours / others for ours, others in samples),
        statistics.median(ours for ours, _ in samples),
        statistics.median(others for _, others in samples),
    )
