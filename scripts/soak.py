"""The work of scripts/soak: a mount under load while its source lives.

Every file in the source holds one of a number of known contents, its first bytes say which, and every content exists as a
plain file outside. So a reader that has opened a file, whatever was put there a moment ago, knows what each of its bytes has
to be. What it is allowed to have opened is known too: processes share a table of what each place holds and how often that was
changed; if nothing changed while a file was opened, it has to be what the table says. That is the whole contract of a source
whose files are replaced by renaming: what is opened is the file as it is then, and is read to its end.

An error is explained only if it is the answer to an opening, and
- the place was changed while it was opened (ENOENT, ESTALE), or
- the file came into being less than a time-to-live ago (ENOENT: the kernel may still believe that there is none).
Reads are allowed no error at all.

WARPFS_SOAK_SANITIZED=1 leaves out the bounds of memory, for servers whose allocator keeps what was freed.
"""

import collections
import errno
import itertools
import json
import mmap
import multiprocessing
import os
import queue
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

MIB = 1 << 20
CACHE = 24 * MIB
# What the server takes besides: the program, and the decoders' own state of each thread.
BESIDE = 96 * MIB
TIME_TO_LIVE = 1.0
# Beyond the time-to-live: clocks are compared across processes that wait for a core.
SLACK = 0.5
LABEL = 16
EMPTY, ABSENT = 0, -1
GAUGES = ["open_files", "memory_held", "decoding"]

# How the contents are packed: the codec, the chunk size, the checksum, and the original's size.
PACKINGS = [
    ("lz4", "4K", "blake3", 3 * MIB + 17),
    ("lz4", "128K", "xxh64", 8 * MIB),
    ("lz4", "32M", "none", 40 * MIB + 5),
    ("zstd", "4K", "none", 2 * MIB + 4096),
    ("zstd", "128K", "blake3", 12 * MIB + 1),
    ("zstd", "1M", "blake2b", 6 * MIB),
    ("zstd", "8M", "xxh64", 20 * MIB + 333),
    ("zstd", "32M", "blake3", 34 * MIB),
    ("snappy", "64K", "blake3", 5 * MIB + 9),
    ("snappy", "8M", "none", 17 * MIB),
    ("brotli", "16K", "xxh64", 2 * MIB + 100),
    ("brotli", "1M", "blake3", 4 * MIB),
    ("brotli", "4M", "none", 8 * MIB + 77),
    ("zstd", "128K", "blake3", 100),
    ("lz4", "128K", "none", 4097),
    ("snappy", "4K", "xxh64", 65536),
]


def content(number, size):
    """Bytes that compress, with stretches that do not and stretches of zeros; no two contents have a page in common."""
    source = random.Random(number)
    words = [source.randbytes(source.randrange(3, 9)) for _ in range(400)]
    pieces = [b"content %07d\n" % number]
    length = LABEL
    while length < size:
        kind = source.randrange(8)
        if kind == 0:
            piece = source.randbytes(source.randrange(1, 30_000))
        elif kind == 1 and number % 3 == 0:
            # Sparse: whole chunks of zeros among the rest.
            piece = bytes(source.randrange(1, 600_000))
        else:
            piece = b"%d %d " % (number, length) + b"".join(source.choices(words, k=3000))
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)[:size]


class World:
    """What all processes share."""

    def __init__(self, work, warpfs):
        self.work, self.warpfs = Path(work), warpfs
        self.source, self.mounted = self.work / "source", self.work / "mounted"
        self.originals, self.blobs = self.work / "originals", self.work / "blobs"
        self.places, self.packed = [], []
        # Of each place: how often it was changed (odd while it is), what it holds, and when it was changed last.
        self.changes = self.holds = self.changed_at = None
        self.contents = []
        self.stop = multiprocessing.Event()

    def prepare(self):
        for directory in (self.source, self.mounted, self.originals, self.blobs):
            directory.mkdir()
        (self.originals / "0").write_bytes(b"")
        jobs = []
        for number, (codec, chunk_size, checksum, size) in enumerate(itertools.chain(PACKINGS, PACKINGS), 1):
            original = self.originals / str(number)
            original.write_bytes(content(number, size))
            options = ["--codec", codec, "--chunk-size", chunk_size, "--checksum", checksum, "--brotli-quality", "2"]
            jobs.append((original, options))
            self.contents.append(number)
        jobs.append((self.originals / "0", []))
        for original, options in jobs:
            blob = self.blobs / original.name
            subprocess.run([self.warpfs, "pack", "-q", *options, "-o", blob, original], check=True)
        self.contents.append(EMPTY)
        # A place is packed or plain for good; each content is at two packed places and every fourth at a plain one.
        for directory in ("", "a", "a/deeper", "b"):
            (self.source / directory).mkdir(exist_ok=True)
            for slot in range(24):
                self.places.append(os.path.join(directory, f"file-{slot:02}.bin"))
                self.packed.append(slot % 4 != 3)
        count = len(self.places)
        self.changes = multiprocessing.Array("q", count)
        self.holds = multiprocessing.Array("q", count)
        self.changed_at = multiprocessing.Array("d", count)
        for place in range(count):
            self.put(place, self.contents[place % len(self.contents)])

    def put(self, place, number):
        """Replaces a place's file by another, or creates it, by renaming."""
        path = self.path_in_source(place)
        temporary = path.with_name(f".{path.name}.part")
        shutil.copyfile((self.blobs if self.packed[place] else self.originals) / str(number), temporary)
        self.change(place, number, lambda: os.rename(temporary, path))

    def remove(self, place):
        self.change(place, ABSENT, lambda: os.unlink(self.path_in_source(place)))

    def change(self, place, number, act):
        self.changes[place] += 1
        act()
        self.holds[place] = number
        self.changed_at[place] = time.monotonic()
        self.changes[place] += 1

    def path_in_source(self, place):
        return self.source / (self.places[place] + (".warp" if self.packed[place] else ""))

    def path(self, place):
        return os.path.join(self.mounted, self.places[place])


class Reader:
    """What one process of the load does and has seen."""

    def __init__(self, world, name, seed):
        self.world, self.random = world, random.Random(seed)
        self.counts = collections.Counter()
        self.faults = collections.Counter()
        self.name = name
        self.maps = {}

    def original(self, number):
        if number not in self.maps:
            with open(self.world.originals / str(number), "rb") as file:
                empty = os.fstat(file.fileno()).st_size == 0
                self.maps[number] = b"" if empty else mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return self.maps[number]

    def fault(self, what):
        self.faults[f"{self.name}: {what}"] += 1

    def note(self, text):
        with open(self.world.work / "notes", "a") as file:
            file.write(f"{self.name}: {text}\n")

    def failed(self, call, error):
        self.fault(f"{call}: {errno.errorcode.get(error.errno, error.errno)}")

    def opened(self, place):
        """A place's file and the original it has to read as; None if it could not be opened."""
        world = self.world
        before = world.changes[place], world.holds[place]
        try:
            file = os.open(world.path(place), os.O_RDONLY)
        except OSError as error:
            after = world.changes[place], world.holds[place]
            kind = errno.errorcode.get(error.errno, str(error.errno))
            age = time.monotonic() - world.changed_at[place]
            if before == after and before[0] % 2 == 0 and before[1] == ABSENT and error.errno == errno.ENOENT:
                self.counts["openings of what was removed: ENOENT, as it has to be"] += 1
            elif (before != after or before[0] % 2) and error.errno in (errno.ENOENT, errno.ESTALE):
                self.counts[f"openings of what was changed in that moment: {kind}, explained"] += 1
            elif error.errno == errno.ENOENT and age < TIME_TO_LIVE + SLACK:
                self.counts["openings of what is younger than the time-to-live: ENOENT, explained"] += 1
            else:
                self.failed("open", error)
            return None
        after = world.changes[place], world.holds[place]
        self.counts["files opened"] += 1
        try:
            size = os.fstat(file).st_size
            label = os.pread(file, LABEL, 0)
        except OSError as error:
            self.failed("first read", error)
            os.close(file)
            return None
        number = int(label[8:15]) if label.startswith(b"content ") else EMPTY
        if label and number == EMPTY:
            self.fault("WRONG BYTES: no known content")
        elif before == after and before[0] % 2 == 0 and number != before[1]:
            self.fault("WRONG BYTES: another content than was there")
            age = time.monotonic() - world.changed_at[place]
            others = [world.places[at] for at, held in enumerate(world.holds) if held == number]
            self.note(f"{world.places[place]}: {number} for {before[1]}, changed {age:.3f} s ago; {number} is at {others}")
        elif size != len(self.original(number)):
            self.fault("wrong size")
        else:
            return file, self.original(number)
        os.close(file)
        return None

    def compare(self, data, original, offset, length):
        expected = original[offset:offset + length]
        self.counts["reads"] += 1
        self.counts["bytes"] += len(data)
        if data != expected:
            wrong = next((at for at, pair in enumerate(zip(data, expected)) if pair[0] != pair[1]), None)
            self.fault("WRONG BYTES" if wrong is not None else "read too few or too many bytes")
            self.counts["wrong bytes"] += sum(a != b for a, b in zip(data, expected))
            self.note(f"{original[:LABEL]} {offset}+{length}: got {len(data)}, first at {wrong}")

    def pread(self, file, original, offset, length):
        try:
            data = os.pread(file, length, offset)
        except OSError as error:
            return self.failed("read", error)
        self.compare(data, original, offset, length)

    def with_file(self, use):
        found = self.opened(self.random.randrange(len(self.world.places)))
        if found:
            file, original = found
            try:
                use(file, original)
            finally:
                # So that the next reader comes to the server again.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(file)

    def read_randomly(self):
        def use(file, original):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(self.random.randrange(1, 24)):
                offset = self.random.randrange(len(original) + 1)
                length = self.random.choice([1, 100, 4096, 4096, 16384, 131072, 300_000])
                self.pread(file, original, offset, length)
        self.with_file(use)

    def read_sequentially(self):
        def use(file, original):
            length = self.random.choice([4096, 65536, 131072, MIB])
            offset = self.random.choice([0, 0, self.random.randrange(len(original) + 1)])
            most = self.random.choice([2 * MIB, 64 * MIB])
            for offset in range(offset, min(len(original), offset + most) + 1, length):
                self.pread(file, original, offset, length)
                if self.world.stop.is_set():
                    break
        self.with_file(use)

    def map(self):
        def use(file, original):
            if not original:
                return
            with mmap.mmap(file, 0, prot=mmap.PROT_READ) as pages:
                for _ in range(self.random.randrange(1, 16)):
                    offset = self.random.randrange(len(original))
                    length = self.random.choice([1, 5000, 70_000])
                    self.compare(pages[offset:offset + length], original, offset, length)
        self.with_file(use)

    def hold(self):
        """Keeps files open while they are replaced, and reads them to their ends."""
        files = [self.opened(self.random.randrange(len(self.world.places))) for _ in range(12)]
        files = [found for found in files if found]
        self.world.stop.wait(self.random.random())
        for file, original in files:
            for offset in range(0, min(len(original), 4 * MIB) + 1, 131072):
                self.pread(file, original, offset, 131072)
            self.pread(file, original, max(0, len(original) - 1000), 2000)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)

    def look(self):
        """Lists, examines, asks for attributes and for holes."""
        for directory, _, names in os.walk(self.world.mounted):
            self.counts["directories listed"] += 1
            for name in names:
                if name.startswith("."):
                    continue
                path = os.path.join(directory, name)
                try:
                    os.stat(path)
                    self.counts["stats"] += 1
                    if self.random.random() < 0.1:
                        os.getxattr(path, "user.warpfs.codec")
                except OSError as error:
                    # Names are allowed to be of a moment ago; plain files have no such attribute.
                    if error.errno not in (errno.ENOENT, errno.ENODATA, errno.ESTALE):
                        self.failed("stat", error)

        def use(file, original):
            try:
                hole = os.lseek(file, 0, os.SEEK_HOLE)
                while hole < len(original) and not self.world.stop.is_set():
                    data = os.lseek(file, hole, os.SEEK_DATA)
                    if original[hole:data].strip(b"\0"):
                        self.fault("WRONG BYTES: a hole where data is")
                    self.counts["holes"] += 1
                    hole = os.lseek(file, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    self.failed("lseek", error)
        self.with_file(use)

    def replace(self):
        """Not a reader: the one process that changes the source."""
        world, place = self.world, self.random.randrange(len(self.world.places))
        kind = self.random.random()
        if world.holds[place] == ABSENT:
            world.put(place, self.random.choice(world.contents))
            self.counts["files created"] += 1
        elif kind < 0.15:
            world.remove(place)
            self.counts["files removed"] += 1
        else:
            world.put(place, self.random.choice(world.contents))
            self.counts["files replaced"] += 1
        world.stop.wait(self.random.random() * 0.06)

    def run(self, act, results):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            while not self.world.stop.is_set():
                getattr(self, act)()
        except Exception:
            traceback.print_exc()
            self.fault("the load itself failed")
        self.maps.clear()
        results.put((self.counts, self.faults))


def status(pid, field):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def descriptors(pid):
    found = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
        except FileNotFoundError:
            pass
    return sorted(found)


def is_mounted(path):
    """Whether anything is mounted there, be its server dead."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path) for line in lines)


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def main(warpfs, minutes):
    # So that the server and the mount end also then. Under nohup, the one stays ignored.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    faults, lines = collections.Counter(), []
    sanitized = os.environ.get("WARPFS_SOAK_SANITIZED") == "1"
    # As the table of mounts has it.
    work = os.path.realpath(tempfile.mkdtemp(prefix="warpfs-soak."))
    world = World(work, warpfs)
    server, processes = None, []
    try:
        world.prepare()
        log = world.work / "log"
        command = [warpfs, "mount", "-f", "--cache-size", str(CACHE), "--ttl", str(TIME_TO_LIVE), "--log-file", log]
        server = subprocess.Popen([*command, world.source, world.mounted])
        if not wait_until(lambda: is_mounted(world.mounted) or server.poll() is not None, 20) or server.poll() is not None:
            sys.exit("soak: the mount did not come up")

        def stats():
            printed = subprocess.run([warpfs, "stats", "--json", world.mounted], check=True, capture_output=True)
            return json.loads(printed.stdout)

        # Some directories stay open once they were listed.
        for directory, _, names in os.walk(world.mounted):
            for name in names:
                os.stat(os.path.join(directory, name))
        at_first = descriptors(server.pid)
        results = multiprocessing.Queue()
        acts = ["read_randomly"] * 2 + ["read_sequentially"] * 2 + ["map", "hold", "look", "replace"]
        seed = random.SystemRandom().randrange(1 << 32)
        for number, act in enumerate(acts):
            load = Reader(world, act, seed + number)
            processes.append(multiprocessing.Process(target=load.run, args=(act, results)))
            processes[-1].start()
        samples, most_files, ticks = [], 0, os.times()
        began = time.monotonic()
        end = began + minutes * 60
        pause = max(0.25, minutes * 60 / 240)
        while time.monotonic() < end and server.poll() is None:
            time.sleep(pause)
            try:
                now = stats()
                samples.append((time.monotonic() - began, status(server.pid, "VmRSS:")))
                most_files = max(most_files, len(descriptors(server.pid)))
            except (OSError, KeyError, subprocess.CalledProcessError):
                # A server that has crashed cannot be asked; what there is to say of it is said below.
                if not wait_until(lambda: server.poll() is not None, 5):
                    raise
                break
            if now["memory_used"] > now["memory_budget"]:
                faults["the budget was exceeded"] += 1
        world.stop.set()
        counts = collections.Counter()
        end, told = time.monotonic() + 120, 0
        while told < len(processes):
            running = any(process.is_alive() for process in processes)
            try:
                done, failed = results.get(timeout=1)
            except queue.Empty:
                if running and time.monotonic() < end:
                    continue
                # A map of a dead mount kills who reads it.
                faults["processes of the load that told nothing of what they saw"] += len(processes) - told
                break
            told += 1
            counts += done
            faults += failed
        for process in processes:
            process.join(10)
        if server.poll() is not None:
            faults[f"the server ended with {server.returncode}"] += 1
            return report(minutes, seed, counts, faults, lines, world)

        at_rest = lambda: all(stats()[gauge] == 0 for gauge in GAUGES)
        if not wait_until(at_rest, 20):
            faults["a gauge does not come back to zero: " + ", ".join(f"{g} {stats()[g]}" for g in GAUGES)] += 1
        if not wait_until(lambda: descriptors(server.pid) == at_first, 5):
            leaked = collections.Counter(descriptors(server.pid)) - collections.Counter(at_first)
            faults[f"descriptors leaked: {dict(leaked)}"] += 1
        last = stats()
        cpu = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
        seconds = (int(cpu[11]) + int(cpu[12])) / os.sysconf("SC_CLK_TCK")
        lines += memory(samples, faults, sanitized)
        lines.append(f"descriptors: {len(at_first)} before, {most_files} at most, {len(descriptors(server.pid))} after")
        lines.append(f"processor time of the server: {seconds:.0f} s of {time.monotonic() - began:.0f} s, of {os.cpu_count()} cores")
        lines.append("at the end: " + ", ".join(f"{key} {value}" for key, value in last.items()))
        subprocess.run([warpfs, "umount", world.mounted], check=True)
        if not wait_until(lambda: server.poll() is not None, 20) or server.returncode != 0:
            faults[f"the server did not end by the unmount: {server.poll()}"] += 1
        if is_mounted(world.mounted):
            faults["something is still mounted"] += 1
        wrong = [line for line in log.read_text().splitlines() if " ERROR " in line or " WARN " in line]
        if wrong:
            faults[f"the log has {len(wrong)} errors and warnings, the first: {wrong[0]}"] += 1
        return report(minutes, seed, counts, faults, lines, world)
    finally:
        world.stop.set()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        # Of a server that has crashed, too.
        while is_mounted(world.mounted) and subprocess.run(["umount", "-l", world.mounted], check=False).returncode == 0:
            pass
        if server and server.poll() is None:
            server.terminate()
            server.wait(20)
        shutil.rmtree(work, ignore_errors=True)


def memory(samples, faults, sanitized):
    """What the server's memory did, in lines; a fault if it has no bound, or grows in the later half."""
    resident = [bytes for _, bytes in samples]
    later = samples[len(samples) // 2:]
    slope = statistics.linear_regression(*zip(*later)).slope * 60 if len(later) > 2 else 0.0
    grown = slope * (later[-1][0] - later[0][0]) / 60
    lines = [
        f"resident memory: {resident[0] / MIB:.1f} MiB at first, {statistics.median(resident) / MIB:.1f} in the median, "
        f"{max(resident) / MIB:.1f} at most, {resident[-1] / MIB:.1f} at last",
        f"slope over the later half: {slope / MIB:+.2f} MiB a minute ({grown / MIB:+.2f} MiB in all)",
    ]
    if not sanitized:
        if max(resident) > CACHE + BESIDE:
            faults[f"more than {(CACHE + BESIDE) // MIB} MiB of memory"] += 1
        # What a leak adds up to; the memory of a server under load goes up and down by as much as its cache.
        if grown > CACHE / 2:
            faults["memory grows"] += 1
    return lines


def report(minutes, seed, counts, faults, lines, world):
    notes = world.work / "notes"
    print(f"soak of {minutes:g} minutes, seed {seed}")
    for what, count in sorted(counts.items()):
        print(f"  {what}: {count:,}")
    print(f"  wrong bytes: {counts['wrong bytes']}")
    for line in lines:
        print(f"  {line}")
    if notes.exists():
        print("  " + "\n  ".join(notes.read_text().splitlines()[:20]))
    for what, count in faults.items():
        print(f"  FAULT: {what} ({count})")
    print("soak: " + ("failed" if faults else "all of it held"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
