"""Mounts of warpfs and of its peers, each ended with the block that began it, whatever happens there."""

import contextlib
import copy
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import machine

PATIENCE = 30


class Mount:
    """Something mounted. Without a server the kernel does the work."""

    def __init__(self, path, server=None, user=None):
        self.path = path
        self.server = server
        self.user = user

    def file(self):
        """The input, through the mount."""
        return self.path / "data.tar"

    def read(self, *command, discard=False):
        """Runs a reader; its processor time includes the server's, its memory is the server's. What it prints is
        thrown away if that is the data."""
        before = self._cpu()
        finished = machine.run(*command, user=self.user, output="/dev/null" if discard else None)
        spent = self._cpu() - before
        if self.server:
            finished.cpu += spent
            finished.memory = machine.process_memory(self.server.pid)
        else:
            finished.cpu = spent
            finished.memory = None
        return finished

    def _cpu(self):
        return machine.process_cpu(self.server.pid) if self.server else machine.machine_cpu()


@contextlib.contextmanager
def mount_point(work, user=None):
    """A directory to mount on, with nothing mounted on it in the end."""
    path = Path(tempfile.mkdtemp(prefix="mount-", dir=work))
    try:
        os.chown(path, user or 0, user or 0)
        yield path
    finally:
        deadline = time.monotonic() + PATIENCE
        while machine.is_mounted(path):
            late = time.monotonic() > deadline
            subprocess.run(["umount", *(["-l"] if late else []), path], stderr=subprocess.DEVNULL)
            if machine.is_mounted(path):
                time.sleep(0.05)
        path.rmdir()


@contextlib.contextmanager
def open_to_all(bench):
    """The bench where every user can come: the checkout may lie in a home that is closed to others, and then neither the
    program nor the inputs are within their reach."""
    there = copy.copy(bench)
    # As the table of mounts has it.
    there.work = Path(tempfile.mkdtemp(prefix="warpfs-bench-")).resolve()
    there.warpfs = there.work / bench.warpfs.name
    try:
        there.work.chmod(0o755)
        shutil.copyfile(bench.warpfs, there.warpfs)
        there.warpfs.chmod(0o755)
        with mount_point(there.work) as inputs:
            # Private, or else each mount beneath would show in the other place as well.
            machine.run("mount", "--bind", "--make-private", bench.inputs.directory, inputs)
            there.inputs = copy.copy(bench.inputs)
            there.inputs.directory = inputs
            yield there
    finally:
        # Nothing but these: should the inputs still be mounted, they are not to be removed along with it.
        there.warpfs.unlink(missing_ok=True)
        there.work.rmdir()


@contextlib.contextmanager
def served(work, command, user=None, ready=None, environment=None):
    """A mount that a process in the foreground serves. `command` is given the mount point. `ready` is what the server
    says once it is ready; if it says nothing, it is ready when it is mounted."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(mount_point(work, user))
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        identity = {"user": user, "group": user, "extra_groups": []} if user else {}
        server = subprocess.Popen(
            [str(word) for word in command(path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True,
            env=environment, **identity,
        )
        stack.callback(machine.end, server)
        deadline = time.monotonic() + PATIENCE
        while not machine.is_mounted(path) or (ready and ready not in _said(log)):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command(path)} does not mount:\n{_said(log)}")
            time.sleep(0.002)
        yield Mount(path, server, user)


def _said(log):
    return os.pread(log.fileno(), 1 << 16, 0).decode(errors="replace")


def warpfs(bench, source, *options, user=None):
    """A directory of packed files."""
    return served(
        bench.work,
        lambda path: [bench.warpfs, "mount", "-f", *options, source, path],
        user,
        ready="is mounted on",
    )


@contextlib.contextmanager
def kernel(bench, kind, image, user=None):
    """An image that the kernel reads, through a loop device that goes with the mount; it is this user who reads."""
    with mount_point(bench.work) as path:
        machine.run("mount", "-t", kind, "-o", "loop,ro", image, path)
        yield Mount(path, user=user)


def squashfuse(bench, image, user=None):
    """The FUSE server of squashfs images, the faster one of the two where both are installed."""
    program = shutil.which("squashfuse_ll") or "squashfuse"
    return served(bench.work, lambda path: [program, "-f", image, path], user)


def ratarmount(bench, archive, user=None):
    """The FUSE server of archives, decoding with every processor."""
    return served(
        bench.work,
        lambda path: [bench.python / "ratarmount", "-f", "-P", "0", archive, path],
        user,
    )


@contextlib.contextmanager
def plain(directory):
    """No mount at all: the limit."""
    yield Mount(directory)
