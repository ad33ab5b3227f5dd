"""Files in an object store: a real one on this machine, behind a link of 1 Gbit/s and a delay for every request. What is
told of requests and bytes is what has passed the link."""

import base64
import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time

import machine
import mounts
import rounds
from inputs import size_on_disk
from reading import load
from report import megabytes, megabytes_per_second, milliseconds, seconds
from rounds import Contender

DELAYS = (0, 10, 50)
GIGABIT = 125_000_000
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "benchmark-secret", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"
# The store and the link would have processors of their own: here they come first on those that there are.
FIRST = ("nice", "-n", "-20")


class Store:
    """An object store with some files, each an object under its name."""

    def __init__(self, bench, files):
        self.bench = bench
        self.files = files

    def __enter__(self):
        # Should it not come up, what was begun ends all the same.
        with contextlib.ExitStack() as stack:
            self.address = self._start(stack)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *failure):
        return self.stack.__exit__(*failure)

    def _start(self, stack):
        root = stack.enter_context(tempfile.TemporaryDirectory(dir=self.bench.work))
        os.mkdir(f"{root}/{BUCKET}")
        for file in self.files:
            os.link(file, f"{root}/{BUCKET}/{file.name}")
            _tell_etag(root, file)
        log = stack.enter_context(tempfile.NamedTemporaryFile("r"))
        program = subprocess.run(["scripts/object-server"], check=True, capture_output=True, text=True).stdout.strip()
        server = subprocess.Popen(
            [*FIRST, program, "--host", "127.0.0.1", "--port", "0", "--access-key", KEYS["AWS_ACCESS_KEY_ID"],
             "--secret-key", KEYS["AWS_SECRET_ACCESS_KEY"], root],
            stdin=subprocess.DEVNULL, stdout=open(log.name, "w"), env={**os.environ, "RUST_LOG": "s3s_fs=info"})
        stack.callback(machine.end, server)
        deadline = time.monotonic() + 30
        while "running at http://" not in (said := open(log.name).read()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the object store does not start: {said}")
            time.sleep(0.01)
        return said.split("running at http://")[1].split()[0].strip(",\x1b")


def _tell_etag(root, file):
    """As the store does for what is put there: else it would hash the whole object for each request. It is one of an object
    that came in parts, as one so large does; any other is an MD5, and rclone compares it with what it has read."""
    name = [base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") for text in (BUCKET, file.name)]
    etag = hashlib.md5(f"{file.name} {file.stat().st_size}".encode()).hexdigest() + "-128"
    with open(f"{root}/.bucket-{name[0]}.object-{name[1]}.internal.json", "w") as beside:
        json.dump({"e_tag": etag}, beside)


class Link:
    """What stands between the store and those who read from it."""

    def __init__(self, bench, store, delay, rate=GIGABIT):
        self.command = [*FIRST, bench.load, "link", store.address, "--delay", str(delay), "--rate", str(rate)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = json.loads(self.process.stdout.readline())["address"]
        others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment = {**others, **KEYS, "AWS_ENDPOINT_URL": f"http://{self.address}"}
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def passed(self):
        """Requests and bytes since it was asked last."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def warpfs(bench, link, *options):
    return mounts.served(
        bench.work,
        lambda path: [bench.warpfs, "mount", "-f", *options, f"s3://{BUCKET}/", path],
        ready="is mounted on",
        environment=link.environment,
    )


def rclone(bench, link):
    remote = (f":s3,provider=Other,access_key_id={KEYS['AWS_ACCESS_KEY_ID']},"
              f"secret_access_key={KEYS['AWS_SECRET_ACCESS_KEY']},endpoint='http://{link.address}':{BUCKET}")
    return mounts.served(
        bench.work, lambda path: ["rclone", "mount", "--read-only", "--config", "/dev/null", remote, path],
        environment=link.environment)


@contextlib.contextmanager
def s3fs(bench, link):
    with tempfile.NamedTemporaryFile("w", dir=bench.work) as keys:
        keys.write(f"{KEYS['AWS_ACCESS_KEY_ID']}:{KEYS['AWS_SECRET_ACCESS_KEY']}\n")
        keys.flush()
        with mounts.served(bench.work, lambda path: [
            "s3fs", BUCKET, path, "-f", "-o", f"passwd_file={keys.name},url=http://{link.address},use_path_request_style,ro",
        ]) as mounted:
            yield mounted


def ratarmount(bench, link):
    """With its index at hand, as locally."""
    archive = bench.inputs.frames()
    program, index = bench.python / "ratarmount", f"{archive}.index.sqlite"
    return mounts.served(
        bench.work,
        lambda path: [program, "-f", "-P", "0", "--index-file", index, f"s3://{BUCKET}/{archive.name}", path],
        environment=link.environment,
    )


PEERS = {"rclone mount": rclone, "s3fs": s3fs}


def _contender(bench, store, delay, name, mount, read, size, ours=False):
    def run():
        machine.drop_caches()
        machine.read_back(*store.files)
        start = time.perf_counter()
        with Link(bench, store, delay) as link:
            with mount(bench, link) as mounted:
                os.listdir(mounted.path)
                to_mount = time.perf_counter() - start
                before = link.passed()
                sample = read(mounted)
                passed = link.passed()
            # Some requests have no end before the mount does.
            after = link.passed()
            return {
                **sample,
                "to_mount": to_mount,
                "read_requests": passed["requests"],
                "requests": sum(each["requests"] for each in (before, passed, after)),
                "bytes": sum(each["bytes"] for each in (before, passed, after)),
            }

    return Contender(name, run, ours=ours, size=size)


def _whole(bench):
    def read(mounted):
        finished = mounted.read("cat", mounted.file(), discard=True)
        return {"rate": bench.size / finished.seconds, "seconds": finished.seconds, "cpu": finished.cpu}

    return read


def reads(bench, section):
    """The whole file in order, and 4 KiB at random offsets, at each delay."""
    packed, plain, frames = bench.inputs.packed("zstd", None), bench.inputs.data(), bench.inputs.frames()
    missing = [program for program in ("rclone", "s3fs") if not shutil.which(program)]
    for program in missing:
        bench.say(f"left out: {program} is not installed")
    count = 50 if bench.quick else 200
    random = load(bench, "--pattern", "random", "--readers", 1, "--reads", count)
    # Each of its reads decodes a whole frame.
    few = load(bench, "--pattern", "random", "--readers", 1, "--reads", 5)
    # The same file by both names would hide one from a mount of all.
    with Store(bench, list(packed.iterdir())) as ours, Store(bench, [plain]) as theirs, Store(bench, [frames]) as tar:
        for title, read, key in (("The whole file", _whole(bench), "rate"), ("4 KiB at random", random, "p50")):
            rows = []
            for delay in DELAYS:
                contenders = [
                    _contender(bench, ours, delay, "warpfs zstd", warpfs, read, size_on_disk(packed), True),
                    *(_contender(bench, theirs, delay, f"{name}, not packed", mount, read, size_on_disk(plain))
                      for name, mount in PEERS.items() if name.split()[0] not in missing),
                    _contender(bench, tar, delay, "ratarmount zstd", ratarmount,
                               few if read is random else read, size_on_disk(frames)),
                ]
                for each in rounds.compare(bench, contenders):
                    figure = (megabytes_per_second if key == "rate" else milliseconds)(each.median[key])
                    rows.append([f"{delay} ms", each.name, seconds(each.median["to_mount"]), figure,
                                 f"{each.median['requests']:,.0f}", megabytes(each.median["bytes"])])
                    if each.ours and key == "rate":
                        _sequential_target(bench, section, delay, each)
                    elif each.ours:
                        _random_targets(section, delay, each, count)
            if rows:
                section.text(f"{title}, through a link of 1 Gbit/s:")
                section.table(["delay", "mount", "mounted and listed in", "rate" if key == "rate" else "p50", "requests", "bytes"], rows)


def _sequential_target(bench, section, delay, ours):
    """What the link lets through, decoded: decoding is faster than that."""
    limit = GIGABIT * bench.size / ours.size
    ratio = ours.median["rate"] / limit
    section.target_row(
        f"far, sequential, zstd, {delay} ms", megabytes_per_second(ours.median["rate"]),
        f"{megabytes_per_second(limit)} (the link, times what is packed away)", f"{ratio:.2f}×", "at least 0.90×",
        ratio >= 0.9)


def _random_targets(section, delay, ours, count):
    """One round trip and what sending and decoding a chunk takes; opening the file is a few requests more."""
    beyond = ours.median["p50"] - delay / 1e3
    section.target_row(
        f"far, random 4 KiB, zstd, {delay} ms, p50 beyond the delay", milliseconds(beyond), "", "", "below 5 ms",
        beyond < 0.005)
    requests = ours.median["read_requests"] / count
    section.target_row(
        f"far, random 4 KiB, zstd, {delay} ms, requests for a read", f"{requests:.2f}", "", "", "at most 1.05",
        requests <= 1.05)


def several(bench, section):
    """As many mounts at once, each of its own process, reading the same object: what the store gives to all together."""
    packed = bench.inputs.packed("zstd", None)
    rows = []
    with Store(bench, list(packed.iterdir())) as store:
        for count in (1, 8):
            def run(count=count):
                machine.drop_caches()
                machine.read_back(*store.files)
                with Link(bench, store, 10) as link, contextlib.ExitStack() as stack:
                    mounted = [stack.enter_context(warpfs(bench, link)) for _ in range(count)]
                    start = time.perf_counter()
                    # A reader's error is the case's.
                    with concurrent.futures.ThreadPoolExecutor(count) as readers:
                        for _ in readers.map(lambda each: machine.run("cat", each.file(), output="/dev/null"), mounted):
                            pass
                    took = time.perf_counter() - start
                    return {"rate": count * bench.size / took, **link.passed()}

            for each in rounds.compare(bench, [Contender(f"{count} mounts", run, ours=True)]):
                rows.append([count, megabytes_per_second(each.median["rate"]), f"{each.median['requests']:,.0f}",
                             megabytes(each.median["bytes"])])
    section.compared = False
    if rows:
        section.table(["mounts", "all together", "requests", "bytes"], rows)
