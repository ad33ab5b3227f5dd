"""Runs commands in a terminal of 80 by so many lines, and draws what stands on it at some moment as SVG.

Each picture is a real run: nothing of it is written by hand. The files are those of the machine it runs on.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from xml.sax.saxutils import escape

import pyte

COLUMNS = 80
CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 14
FOREGROUND, BACKGROUND = "#d8dee9", "#1f2430"
COLOURS = {
    "black": "#3b4252", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef",
    "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d8dee9", "brightblack": "#7b8494",
}  # fmt: skip
# Drawn as rectangles, because fonts leave gaps between them: which part of the cell they fill, from its top.
BLOCKS = {"█": (0, 1), "▀": (0, 0.5), "▄": (0.5, 1)}


def colour(name: str, default: str) -> str:
    """pyte gives names, or six hexadecimal digits."""
    if name == "default":
        return default
    return COLOURS.get(name, f"#{name}")


def screen_of(commands: list[str], lines: int, environment, until: float | None = None) -> pyte.Screen:
    """The screen after the commands were typed one by one, or so many seconds into the last of them."""
    screen = pyte.Screen(COLUMNS, lines)
    stream = pyte.ByteStream(screen)
    for command in commands:
        stream.feed(f"\x1b[1;32m$\x1b[0m {command}\r\n".encode())
        process, terminal = pty.fork()
        if process == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, COLUMNS, 0, 0))
            os.execvpe("bash", ["bash", "-c", command], environment)
        end = time.monotonic() + until if until and command == commands[-1] else None
        while end is None or time.monotonic() < end:
            ready, _, _ = select.select([terminal], [], [], 0.05)
            if not ready:
                continue
            try:
                output = os.read(terminal, 65536)
            except OSError:
                break
            if not output:
                break
            stream.feed(output)
        if end is not None:
            os.kill(process, signal.SIGINT)
        os.close(terminal)
        os.waitpid(process, 0)
    return screen


def rectangle(x, y, width, height, fill) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'


def drawn(screen: pyte.Screen, title: str) -> str:
    """The screen as SVG: runs of cells of one look as one text, and blocks as rectangles."""
    used = [line for line in range(screen.lines) if screen.display[line].strip()]
    lines = used[-1] + 1 if used else 1
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = lines * CELL_HEIGHT + 2 * MARGIN
    shapes = []
    for line in range(lines):
        top = round(MARGIN + line * CELL_HEIGHT, 2)
        runs = []
        for column in range(COLUMNS):
            cell = screen.buffer[line][column]
            front, back = colour(cell.fg, FOREGROUND), colour(cell.bg, "none")
            if cell.reverse:
                front, back = (BACKGROUND if back == "none" else back), front
            look = (front, back, cell.bold, cell.data in BLOCKS)
            if cell.data in BLOCKS:
                look += (cell.data,)
            if runs and runs[-1][0] == look:
                runs[-1][2] += cell.data
            else:
                runs.append([look, column, cell.data])
        for (front, back, bold, *rest), column, text in runs:
            left = round(MARGIN + column * CELL_WIDTH, 2)
            long = round(len(text) * CELL_WIDTH, 2)
            if back != "none":
                shapes.append(rectangle(left, top, long, CELL_HEIGHT, back))
            if rest[0]:
                begin, end = BLOCKS[rest[1]]
                shapes.append(rectangle(left, top + begin * CELL_HEIGHT, long, (end - begin) * CELL_HEIGHT, front))
            elif text.strip():
                weight = ' font-weight="bold"' if bold else ""
                fill = f' fill="{front}"' if front != FOREGROUND else ""
                # Spaces in a row are drawn as one.
                for words in re.finditer(r"\S+( \S+)*", text):
                    begin = round(left + words.start() * CELL_WIDTH, 2)
                    length = round(len(words[0]) * CELL_WIDTH, 2)
                    shapes.append(
                        f'<text x="{begin:g}" y="{top + 13:g}" textLength="{length:g}"{fill}{weight}>'
                        f"{escape(words[0])}</text>"
                    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>'
        f'<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" fill="{FOREGROUND}">'
        f'{"".join(shapes)}</g></svg>\n'
    )


def main() -> None:
    binary, pictures = Path(sys.argv[1]), Path(sys.argv[2])
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="warpfs-captures.") as work:
        work = Path(work)
        (work / "bin").mkdir()
        (work / "bin" / "warpfs").symlink_to(binary.absolute())
        environment = dict(os.environ, PATH=f"{work}/bin:{os.environ['PATH']}", TERM="xterm-256color", COLORTERM="truecolor")
        environment.pop("NO_COLOR", None)
        subprocess.run(
            "tar -cf libraries.tar -C / usr/lib 2>/dev/null; truncate -s 700M libraries.tar; mkdir mnt packed",
            shell=True, cwd=work, check=True,
        )  # fmt: skip
        run_in(work, pictures.absolute(), environment)


def run_in(work: Path, pictures: Path, environment) -> None:
    os.chdir(work)

    def picture(name: str, title: str, commands: list[str], lines: int = 40, until: float | None = None) -> None:
        screen = screen_of(commands, lines, environment, until)
        (pictures / f"{name}.svg").write_text(drawn(screen, title))
        print(f"{name}.svg: {(pictures / f'{name}.svg').stat().st_size} bytes")

    picture("estimate", "warpfs estimate", ["warpfs estimate libraries.tar"])
    picture("progress", "warpfs pack at work", ["warpfs pack libraries.tar"], until=1.2)
    subprocess.run("warpfs pack -q -o packed/libraries.tar.warp libraries.tar", shell=True, check=True, env=environment)
    picture("chunk-map", "warpfs info", ["warpfs info packed/libraries.tar.warp"])
    subprocess.run(["warpfs", "mount", "packed", "mnt"], check=True, env=environment)
    try:
        subprocess.run("cat mnt/libraries.tar > /dev/null; grep -c ELF mnt/libraries.tar", shell=True, env=environment)
        picture("stats", "warpfs stats", ["warpfs stats mnt"], lines=60)
    finally:
        subprocess.run(["warpfs", "umount", "mnt"], check=True, env=environment)


if __name__ == "__main__":
    main()
