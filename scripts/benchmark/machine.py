"""The machine: commands run and measured, caches dropped, processor time and memory read.

Processor time is in seconds. A command's comes from wait4, so it counts its children; a server's from /proc/PID/stat;
the whole machine's, where the kernel does the work, from /proc/stat. Memory is the most that was resident at a time, in
bytes: of a command as time(1) saw it, because wait4 also counts what this program had resident when it forked.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PROCESSORS = len(os.sched_getaffinity(0))
# Whoever is nobody: the ordinary user of the measurements that need one.
ORDINARY_USER = 65534


@dataclass
class Finished:
    """What a command took."""

    seconds: float
    cpu: float
    memory: int
    output: str

    def answer(self):
        """What it printed, as JSON."""
        return json.loads(self.output)


def run(*command, user=None, output=None, sync=None, status=(0,)):
    """Runs a command to its end. `output` is a file for what it prints, which is returned if there is none; `sync` is a
    file that is brought to the disk before the clock stops; `status` is what it may end with."""
    command = [str(word) for word in command]
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(tempfile.NamedTemporaryFile("r"))
        os.chown(memory.name, user or 0, user or 0)
        said = stack.enter_context(open(output, "wb") if output else tempfile.TemporaryFile())
        errors = stack.enter_context(tempfile.TemporaryFile())
        identity = {"user": user, "group": user, "extra_groups": []} if user else {}
        start = time.perf_counter()
        child = subprocess.Popen(
            ["time", "-q", "-o", memory.name, "-f", "%M", *command],
            stdin=subprocess.DEVNULL, stdout=said, stderr=errors, start_new_session=True, **identity,
        )
        try:
            _, code, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(code)
        except BaseException:
            # Its session has no other processes than those it started.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        cpu = usage.ru_utime + usage.ru_stime
        # Who failed has perhaps written nothing.
        if sync and child.returncode in status:
            before = time.process_time()
            with open(sync, "rb") as file:
                os.fsync(file.fileno())
            cpu += time.process_time() - before
        seconds = time.perf_counter() - start
        if child.returncode not in status:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)}: status {child.returncode}\n{errors.read().decode()[-2000:]}")
        text = ""
        if not output:
            said.seek(0)
            text = said.read().decode(errors="replace")
        peak = int(memory.read().split()[-1]) * 1024
    return Finished(seconds, cpu, peak, text)


def drop_caches():
    """Empties the page cache and the caches of names and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def read_back(*paths):
    """Reads files into the page cache, so that decoding is measured and not the disk."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def process_cpu(process):
    """Processor seconds a running process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def process_memory(process):
    """The most memory a running process has had resident, in bytes."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {process} has no memory")


def machine_cpu():
    """Processor seconds the whole machine has used: user, nice, system and interrupts."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[number]) for number in (0, 1, 2, 5, 6)) / CLOCK_TICKS


def is_mounted(path):
    """Whether something is mounted there; asks no file system, so that it works on other users' mounts too."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == str(path) for line in lines)


def end(process):
    """Ends a process we started, by force if it takes more than ten seconds."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def fuse_for_everybody():
    """Lets ordinary users open /dev/fuse, as they may where a distribution set it up, until the end."""
    mode = os.stat("/dev/fuse").st_mode & 0o777
    os.chmod("/dev/fuse", 0o666)
    try:
        yield
    finally:
        os.chmod("/dev/fuse", mode)


def facts():
    """What the reader of a figure has to know of the machine, as rows of a table."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    virtual = "hypervisor" in Path("/proc/cpuinfo").read_text()
    return [
        ["processors", f"{PROCESSORS} × {model}" + (" (virtual machine)" if virtual else "")],
        ["memory", f"{total / 2**30:.0f} GiB"],
        ["kernel", f"Linux {platform.release().split('-')[0]}"],
    ]
