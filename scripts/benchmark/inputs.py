"""What is measured: one large file, packed and imaged in every way that a case asks for.

Everything is made once and kept in the working directory, under the input's size; what is there already is used again.
A thing is made under another name and renamed when it is whole.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import machine


class Inputs:
    def __init__(self, bench):
        self.bench = bench
        self.directory = bench.work / f"inputs-{bench.size >> 20}M"
        self.directory.mkdir(parents=True, exist_ok=True)

    def data(self):
        """The input: a tar of the Rust toolchain's and the system's libraries, cut off at its size; where a small system has too
        few of them, of its programs and the toolchain's as well."""
        return self.data_directory() / "data.tar"

    def data_directory(self):
        def make(target):
            target.mkdir()
            sysroot = machine.run("rustc", "--print", "sysroot").output.strip()
            # First as much of the toolchain's as there is of it up to half the size, then the system's.
            with open(target / "data.tar", "wb") as file:
                _tar(file, Path(sysroot) / "lib", self.bench.size // 2)
                for directory in ("/usr/lib", "/usr/bin", "/usr/share", sysroot):
                    _tar(file, Path(directory), self.bench.size - file.tell())
                if file.tell() != self.bench.size:
                    sys.exit("scripts/bench: this machine has not enough libraries and programs: use a smaller --size")

        return self._once("plain", make)

    def packed(self, codec, chunk_size, purpose=None):
        """The directory of the input packed by warpfs; without a chunk size, with the default one."""
        def make(target):
            target.mkdir()
            self.pack(self.data(), target / "data.tar.warp", codec, chunk_size, purpose)

        suffix = f"-for-{purpose}" if purpose else ""
        return self._once(f"warpfs-{codec}-{chunk_size or 'default'}{suffix}", make)

    def parts(self, codec, count):
        """The directory of the input cut into `count` files, each packed by warpfs: part-0 and so on."""
        def make(target):
            target.mkdir()
            with open(self.data(), "rb") as data:
                for number in range(count):
                    part = target / f"part-{number}"
                    part.write_bytes(data.read(self.bench.size // count))
                    self.pack(part, target / f"part-{number}.warp", codec)
                    part.unlink()

        return self._once(f"parts-{codec}-{count}", make)

    def sparse(self, size):
        """A file of this many bytes: mostly a hole, with a piece of the input at every hundredth of it."""
        return self.sparse_directory(size) / "data.tar"

    def sparse_directory(self, size):
        def make(target):
            target.mkdir()
            with open(self.data(), "rb") as data, open(target / "data.tar", "wb") as file:
                for number in range(100):
                    file.seek(size // 100 * number)
                    file.write(data.read(256 << 10))
                file.truncate(size)

        return self._once(f"holes-{size >> 20}M", make)

    def sparse_packed(self, size, codec="zstd", chunk_size=None):
        """The directory of such a file packed by warpfs."""
        def make(target):
            target.mkdir()
            self.pack(self.sparse(size), target / "data.tar.warp", codec, chunk_size)

        return self._once(f"warpfs-holes-{size >> 20}M-{codec}-{chunk_size or 'default'}", make)

    def sparse_image(self, size):
        """A squashfs image of it."""
        def make(target):
            machine.run(*squashfs_command("zstd", "128K", self.sparse_directory(size), target))

        return self._once(f"holes-{size >> 20}M.img", make)

    def noise_directory(self):
        """The directory of a file as large as the input that does not compress."""
        def make(target):
            target.mkdir()
            with open(target / "data.tar", "wb") as file:
                for _ in range(self.bench.size >> 20):
                    file.write(os.urandom(1 << 20))

        return self._once("noise", make)

    def noise_packed(self, codec, chunk_size):
        """The directory of such a file packed by warpfs."""
        def make(target):
            target.mkdir()
            self.pack(self.noise_directory() / "data.tar", target / "data.tar.warp", codec, chunk_size)

        return self._once(f"warpfs-noise-{codec}-{chunk_size or 'default'}", make)

    def noise_image(self):
        """A squashfs image of it."""
        def make(target):
            machine.run(*squashfs_command("zstd", "128K", self.noise_directory(), target))

        return self._once("noise.img", make)

    def tree(self, count):
        """A tree of this many small files in directories of up to 1000, every second one packed."""
        def make(target):
            target.mkdir()
            text = target / "text"
            text.write_bytes(b"".join(b"line %d of a file that is not large\n" % line for line in range(150)))
            self.pack(text, target / "text.warp", "zstd")
            packed, plain = (target / "text.warp").read_bytes(), text.read_bytes()
            for number in range(count):
                directory = target / f"directory-{number // 1000:03}"
                if number % 1000 == 0:
                    directory.mkdir()
                packs = number % 2 == 0
                name = f"file-{number:06}.txt" + (".warp" if packs else "")
                (directory / name).write_bytes(packed if packs else plain)
            text.unlink()
            (target / "text.warp").unlink()

        return self._once(f"tree-{count}", make)

    def tree_image(self, count):
        """A squashfs image of such a tree."""
        def make(target):
            machine.run(*squashfs_command("zstd", "128K", self.tree(count), target))

        return self._once(f"tree-{count}.img", make)

    def cuttings(self, count):
        """A tree of this many small files cut out of the input, of half a KiB to 32 in directories of 100."""
        def make(target):
            target.mkdir()
            with open(self.data(), "rb") as data:
                for number in range(count):
                    directory = target / f"directory-{number // 100:03}"
                    directory.mkdir(exist_ok=True)
                    # All lengths come by, none in a row.
                    length = 512 + number * 7919 % (32 << 10)
                    (directory / f"file-{number:06}").write_bytes(data.read(length))

        return self._once(f"cuttings-{count}", make)

    def cuttings_packed(self, count):
        """Such a tree packed by warpfs; what does not shrink stays as it is."""
        def make(target):
            machine.run(self.bench.warpfs, "pack", "-q", "-r", "-o", target, self.cuttings(count))

        return self._once(f"warpfs-cuttings-{count}", make)

    def cuttings_image(self, count):
        """A squashfs image of such a tree."""
        def make(target):
            machine.run(*squashfs_command("zstd", "128K", self.cuttings(count), target))

        return self._once(f"cuttings-{count}.img", make)

    def pack(self, source, target, codec, chunk_size=None, purpose=None):
        chunks = ["--chunk-size", chunk_size] if chunk_size else []
        aim = ["--for", purpose] if purpose else []
        machine.run(self.bench.warpfs, "pack", "-q", "--codec", codec, *chunks, *aim, "-o", target, source)

    def python_packed(self, codec):
        """The input packed by the Python package."""
        def make(target):
            machine.run(self.bench.python / "python", self.bench.python_package, "pack", codec, self.data(), target)

        return self._once(f"python-{codec}.warp", make)

    def command_packed(self, suffix, *command):
        """The input as a command line compressor packs it; the command writes to its standard output."""
        def make(target):
            machine.run(*command, self.data(), output=target)

        return self._once(f"{Path(command[0]).name}-data.tar.{suffix}", make)

    def squashfs(self, codec, block):
        def make(target):
            machine.run(*squashfs_command(codec, block, self.data_directory(), target))

        return self._once(f"squashfs-{codec}-{block}.img", make)

    def erofs(self, cluster):
        """An erofs image of lz4 in clusters of so many KiB, as in "64K"."""
        length = int(cluster.removesuffix("K")) << 10

        def make(target):
            machine.run("mkfs.erofs", "--quiet", "-zlz4", f"-C{length}", target, self.data_directory())

        return self._once(f"erofs-lz4-{cluster}.img", make)

    def btrfs(self):
        """A btrfs image that the kernel packed with zstd at level 3 while the input was copied into it."""
        def make(target):
            with open(target, "wb") as file:
                file.truncate(self.bench.size + (512 << 20))
            machine.run("mkfs.btrfs", "--quiet", "--data", "single", "--metadata", "single", target)
            mount_point = target.with_suffix(".mount")
            mount_point.mkdir(exist_ok=True)
            machine.run("mount", "-t", "btrfs", "-o", "loop,compress=zstd:3", target, mount_point)
            try:
                shutil.copyfile(self.data(), mount_point / "data.tar")
            finally:
                machine.run("umount", mount_point)
                mount_point.rmdir()

        return self._once("btrfs-zstd.img", make)

    def frames(self):
        """A tar of the input in many zstd frames, with ratarmount's index beside it."""
        def make(target):
            target.mkdir()
            tar = subprocess.Popen(
                ["tar", "-C", self.data_directory(), "-cf", "-", "data.tar"], stdout=subprocess.PIPE)
            with open(target / "frames.tar.zst", "wb") as file, tar.stdout:
                # A call for each 8 MiB: a frame each.
                while block := tar.stdout.read(8 << 20):
                    frame = subprocess.run(["zstd", "-3", "-c"], input=block, capture_output=True, check=True)
                    file.write(frame.stdout)
            if tar.wait() != 0:
                raise RuntimeError("tar failed")

        return self._once("ratarmount", make) / "frames.tar.zst"

    def _once(self, name, make):
        path = self.directory / name
        if not path.exists():
            self.bench.say(f"making {name}")
            unfinished = self.directory / f"unfinished-{name}"
            remove(unfinished)
            try:
                make(unfinished)
                os.rename(unfinished, path)
            finally:
                remove(unfinished)
        return path


def squashfs_command(codec, block, source, target):
    """mksquashfs at the level the others have, with all processors."""
    level = ["-Xcompression-level", "3"] if codec == "zstd" else []
    return [
        "mksquashfs", source, target, "-noappend", "-quiet", "-no-progress", "-comp", codec, *level, "-b", block,
        "-processors", machine.PROCESSORS,
    ]


def size_on_disk(path):
    """Bytes that a file or the files of a directory take."""
    if path.is_dir():
        return sum(size_on_disk(entry) for entry in path.iterdir())
    return path.stat().st_blocks * 512


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _tar(file, directory, limit):
    """Appends up to `limit` bytes of a tar of a directory, in the order of names."""
    # What cannot be read, or changes meanwhile, is no reason to stop: any bytes will do.
    tar = subprocess.Popen(
        ["tar", "--sort=name", "-C", directory, "-cf", "-", "."], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with tar.stdout:
        while limit > 0 and (block := tar.stdout.read(min(limit, 1 << 20))):
            file.write(block)
            limit -= len(block)
    tar.kill()
    tar.wait()
