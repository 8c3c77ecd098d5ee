"""Compression by an export's runtime.c beside other programs: bits per byte and kB/s of each.

    python benchmarks/archives.py --export DIR FILE ... [--compiler gcc] [--json]

Every program of the list that this machine has compresses every file once; all but PPMd and zpaq
also decompress it, and the result is compared with the file. Speeds are of processor time, in
thousands of bytes of text per second, with all that a program does: the C runtime loads its
weights, too. PPMd is the package pyppmd (variant H, order 6, 64 MB), measured if it is installed.
"""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

PPMD = "import pyppmd, sys; sys.stdout.buffer.write(pyppmd.compress(sys.stdin.buffer.read(), \
max_order=6, mem_size=64 << 20))"
PROGRAMS = {  # the words that compress standard input, and those that decompress it
    "gzip -9": (["gzip", "-9"], ["gzip", "-d"]),
    "zstd -19": (["zstd", "-19", "-q", "--single-thread"], ["zstd", "-d", "-q"]),
    "bzip2 -9": (["bzip2", "-9"], ["bzip2", "-d"]),
    "xz -9e": (["xz", "-9e", "-T1"], ["xz", "-d"]),
    "PPMd": ([sys.executable, "-c", PPMD], []),
}


def run(words: list[str], data: bytes) -> tuple[bytes, float]:
    """What a program makes of its standard input, and the processor time that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(words, input=data, capture_output=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_zpaq(data: bytes, folder: Path) -> tuple[bytes, float]:
    """The archive that zpaq writes with its best method, and its processor time."""
    (folder / "text").write_bytes(data)
    archive = folder / "archive.zpaq"
    archive.unlink(missing_ok=True)
    words = ["zpaq", "add", str(archive), str(folder / "text"), "-method", "5", "-threads", "1"]
    _, seconds = run(words, b"")
    return archive.read_bytes(), seconds


def has_ppmd() -> bool:
    """Whether the package pyppmd is installed."""
    words = [sys.executable, "-c", "import pyppmd"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def measured(data: bytes, model: str, folder: Path) -> dict[str, dict[str, float]]:
    """Bits per byte and kB/s of every program that is there."""
    programs = {
        name: words
        for name, words in PROGRAMS.items()
        if shutil.which(words[0][0]) and (name != "PPMd" or has_ppmd())
    }
    for name, flags in (("int_lm", []), ("int_lm --learn", ["--learn"])):
        programs[name] = [model, "compress", "-", "-", *flags], [model, "decompress", "-", "-"]
    found = {}
    if shutil.which("zpaq"):
        archive, seconds = of_zpaq(data, folder)
        found["zpaq -m5"] = figures(data, archive, seconds)
    for name, (forth, back) in programs.items():
        archive, seconds = run(forth, data)
        found[name] = figures(data, archive, seconds)
        if back:
            text, seconds = run(back, archive)
            assert text == data, f"{name} does not give the text back"
            found[name]["back"] = len(data) / seconds / 1000
    return found


def figures(data: bytes, archive: bytes, seconds: float) -> dict[str, float]:
    return {"bits_per_byte": 8 * len(archive) / len(data), "rate": len(data) / seconds / 1000}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--export", type=Path, required=True, metavar="DIR")
    parser.add_argument("--compiler", default="gcc")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "model"
        source = arguments.export / "runtime.c"
        subprocess.run([arguments.compiler, "-O3", "-o", program, source], check=True)
        for file in arguments.files:
            data = file.read_bytes()
            found = measured(data, str(program), Path(folder))
            rows.append({"file": file.name, "bytes": len(data), "programs": found})
            if not arguments.json:
                print(f"{file.name}, {len(data):,} bytes")
                for name, of in found.items():
                    back = f", back {of['back']:,.0f}" if "back" in of else ""
                    print(f"  {name:15} {of['bits_per_byte']:.3f}  {of['rate']:9,.0f} kB/s{back}")
                sys.stdout.flush()
    if arguments.json:
        print(json.dumps({"machine": common.machine(), "rows": rows}))


if __name__ == "__main__":
    main()
