"""The same bits of runtime.c from every compiler and processor that this machine has or emulates.

Debian's packages: clang, qemu-user, gcc-aarch64-linux-gnu, gcc-arm-linux-gnueabi,
gcc-s390x-linux-gnu; gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm for a board;
nodejs, wasi-libc, lld and libclang-rt-14-dev-wasm32 for WebAssembly. What is missing is skipped.
"""

import re
import subprocess
from pathlib import Path

import pytest
from test_c_archives import THREADS
from test_c_runtime import SANITIZED, STRICT, built, compare, exported, needed

pytestmark = pytest.mark.slow

BOARD = Path(__file__).parent / "board"
NETWORKS = ("egg", "rwkv", "gru", "cache")
NATIVE = [
    ("gcc", "-O0", *SANITIZED),
    ("gcc", "-O3", *SANITIZED),
    ("clang", "-O0", *SANITIZED),
    ("clang", "-O3", *SANITIZED),
    ("gcc", "-O3", "-march=native"),
    ("clang", "-O3", "-march=native"),
    ("gcc", "-O3", "-DPLAIN"),
    ("gcc", "-O2", "-fsanitize=thread", *THREADS),
    ("gcc", "-O2", *SANITIZED, *THREADS, "-DPLAIN"),
    ("clang", "-O3", *THREADS),
]
EMULATED = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "aarch64 with dot products": (
        *("aarch64-linux-gnu-gcc", "-march=armv8.2-a+dotprod"),
        *("qemu-aarch64", "-cpu", "max"),
    ),
    "arm, 32 bits": ("arm-linux-gnueabihf-gcc", "qemu-arm"),
    "s390x, big-endian": ("s390x-linux-gnu-gcc", "qemu-s390x"),
}
RUN_WASM = """
const { WASI } = require('wasi');
const wasi = new WASI({
    version: 'preview1', args: ['model', ...process.argv.slice(3)], preopens: { '/': '/' },
    returnOnExit: true });
const bytes = require('fs').readFileSync(process.argv[2]);
WebAssembly.instantiate(bytes, { wasi_snapshot_preview1: wasi.wasiImport })
    .then(({ instance }) => { process.exitCode = wasi.start(instance); });
"""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("compiler", NATIVE, ids=" ".join)
def test_compilers(compiler: tuple[str, ...], name: str, tmp_path: Path) -> None:
    """gcc and clang, without optimisation and with all of it, under the sanitizers and without."""
    needed(compiler[0])
    compare(directory := exported(name, tmp_path), [built(directory, *compiler)])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("processor", EMULATED)
def test_processors(processor: str, name: str, tmp_path: Path) -> None:
    """Other processors under QEMU."""
    command = EMULATED[processor]
    first = next(place for place, word in enumerate(command) if word.startswith("qemu"))
    needed(command[0], command[first])
    directory = exported(name, tmp_path)
    program = built(directory, *command[:first], "-O2", "-static")
    compare(directory, [*command[first:], program])


@pytest.mark.parametrize("name", NETWORKS)
def test_webassembly(name: str, tmp_path: Path) -> None:
    """WebAssembly under Node."""
    needed("clang", "wasm-ld", "node")
    if not Path("/usr/lib/wasm32-wasi").exists():
        pytest.skip("needs wasi-libc")
    directory = exported(name, tmp_path)
    program = built(directory, "clang", "--target=wasm32-wasi", "-O2", "-Wl,-z,stack-size=1048576")
    script = tmp_path / "run.cjs"
    script.write_text(RUN_WASM)
    weights = directory / "model.safetensors"
    compare(directory, ["node", "--no-warnings", script, program, "--model", weights])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_board_without_floating_point(name: str, tmp_path: Path) -> None:
    """A Cortex-M3 with the weights compiled in; no function of reals is called for."""
    needed("arm-none-eabi-gcc", "arm-none-eabi-nm", "qemu-system-arm")
    directory = exported(name, tmp_path)
    weights = (directory / "model.safetensors").read_bytes()
    array = tmp_path / "weights.h"
    array.write_text(f"const unsigned char model_array[] = {{{','.join(map(str, weights))}}};\n")
    compiler = [
        "arm-none-eabi-gcc",
        "-mcpu=cortex-m3",
        "-mthumb",
        "-O2",
        *STRICT,
        "-DBLOCK_BYTES=4096",
    ]
    compiler += [f'-DMODEL_ARRAY="{array}"', *(["-DROOM_FOR_TABLES"] if name == "rwkv" else [])]
    alone, program = tmp_path / "runtime.o", tmp_path / "board.elf"
    subprocess.run([*compiler, "-c", "-o", alone, directory / "runtime.c"], check=True)
    called = subprocess.run(
        ["arm-none-eabi-nm", "-u", alone], capture_output=True, text=True, check=True
    ).stdout
    assert "__aeabi_uldivmod" in called  # the names of such functions
    assert not re.search(
        r"__aeabi_[a-z0-9]*[df]\d?|__aeabi_[fd]", re.sub("u?ldivmod|memclr", "", called)
    )
    linked = ["--specs=rdimon.specs", "-T", BOARD / "board.ld", BOARD / "start.c"]
    subprocess.run([*compiler, *linked, "-o", program, alone], check=True)
    emulator = tmp_path / "emulate"
    emulator.write_text(
        '#!/bin/sh\nwords=arg=model\nfor word in "$@"; do words="$words,arg=$word"; done\n'
        "exec qemu-system-arm -M mps2-an385 -nographic -monitor none -serial none "
        f'-semihosting-config "enable=on,target=native,$words" -kernel {program}\n'
    )
    emulator.chmod(0o755)
    compare(directory, [emulator])
