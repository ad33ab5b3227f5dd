"""The report: sections of Markdown, which replace their own part of docs/PERFORMANCE.md and leave the rest alone.

A section of that page stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->`. What people write stands outside.
"""

import re

import rounds

TARGETS = ["figure", "warpfs", "against", "ratio", "wanted", "met"]


class Section:
    """What one case has to say."""

    def __init__(self, bench, name):
        self.bench = bench
        self.name = name
        self.parts = []
        self.targets = []
        # Whether there were rounds at all.
        self.compared = bench.rounds > 1

    def text(self, text):
        self.parts.append(text)

    def table(self, header, rows):
        self.parts.append(table(header, rows))

    def chart(self, name, description, svg):
        """A chart in a file of its own, shown here."""
        if self.bench.documentation:
            directory = self.bench.documentation.parent / "performance"
            directory.mkdir(exist_ok=True)
            (directory / f"{name}.svg").write_text(svg)
            self.parts.append(f"![{description}](performance/{name}.svg)")

    def slower(self, figure, ours, other, at_most, key="seconds", show=None):
        """A target: our figure is at most so many times the other's."""
        self._target(figure, ours, other, key, show or seconds, at_most, lambda one, two: one / two, "at most")

    def faster(self, figure, ours, other, at_least, key="seconds", show=None):
        """A target: the other takes at least so many times as long as we do."""
        self._target(figure, ours, other, key, show or seconds, at_least, lambda one, two: two / one, "at least")

    def higher(self, figure, ours, other, at_least, key, show, cpu="cpu"):
        """A target: our rate is at least so many times the other's."""
        self._target(figure, ours, other, key, show, at_least, lambda one, two: one / two, "at least", cpu)

    def _target(self, figure, ours, other, key, show, wanted, ratio_of, bound, cpu="cpu"):
        # Either may have been left out.
        if not (ours and other and ours.median and other.median):
            return
        one, two = ours.median[key], other.median[key]
        ratio = ratio_of(one, two)
        met = ratio >= wanted if bound == "at least" else ratio <= wanted
        note = ""
        if self.bench.pairs and rounds.close(one, two) and ours.median.get(cpu) and other.median.get(cpu):
            taken, _, _ = rounds.cpu_pairs(self.bench, ours, other, cpu)
            note = f"; processor seconds of {self.bench.pairs} pairs: {taken:.2f}×"
        self.target_row(
            figure, f"{show(one)} ({ours.name})", f"{show(two)} ({other.name})", f"{ratio:.2f}×{note}",
            f"{bound} {wanted:.2f}×", met,
        )

    def target_row(self, figure, ours, against, ratio, wanted, met):
        """A target that was worked out elsewhere."""
        self.targets.append([figure, ours, against, ratio, wanted, "yes" if met else "no"])

    def markdown(self):
        targets = [table(TARGETS, self.targets)] if self.targets else []
        rounds_made = [f"Medians of {self.bench.rounds} rounds."] if self.compared else []
        return "\n\n".join(self.parts + rounds_made + targets)


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def store(page, name, markdown):
    """Replaces a section of the page. A page without it is told so: prose decides where a section stands."""
    text = page.read_text()
    pattern = re.compile(rf"(<!-- begin: {re.escape(name)} -->\n).*?(<!-- end: {re.escape(name)} -->)", re.DOTALL)
    if not pattern.search(text):
        raise RuntimeError(f"{page}: there is no place for the section {name}")
    page.write_text(pattern.sub(lambda match: f"{match[1]}\n{markdown}\n\n{match[2]}", text))


def all_targets(page):
    """The rows of all targets' tables on the page, for the summary."""
    rows = []
    header = table(TARGETS, []).splitlines()[0]
    inside = False
    body = re.sub(r"<!-- begin: summary -->.*?<!-- end: summary -->", "", page.read_text(), flags=re.DOTALL)
    for line in body.splitlines():
        if line == header:
            inside = True
        elif inside and line.startswith("| "):
            if not line.startswith("| ---"):
                rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        else:
            inside = False
    return rows


def seconds(value):
    return f"{value:.2f} s"


def milliseconds(value):
    return f"{value * 1e3:.2f} ms"


def microseconds(value):
    return f"{value * 1e6:,.0f} µs"


def megabytes_per_second(value):
    return f"{value / 1e6:,.0f} MB/s"


def per_second(value):
    return f"{value:,.0f}/s"


def mebibytes(value):
    return "" if value is None else f"{value / 2**20:,.0f} MiB"


def megabytes(value):
    return "" if value is None else f"{value / 1e6:,.0f} MB"
