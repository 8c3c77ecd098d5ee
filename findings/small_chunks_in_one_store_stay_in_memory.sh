#!/usr/bin/env bash
# orbax-checkpoint: chunks of 1 MB do not bound the memory of a save; leaving the key-value store does.
#
# One would guess: `SaveArgs(chunk_byte_size=1 << 20)` divides an array among chunks that are compressed and written
#   one after another, so that a save needs a few chunks of memory, whatever holds them: the key-value store of OCDBT,
#   which is Orbax's default, or files (`use_ocdbt=False`).
# What happens: with OCDBT, what is compressed stays in memory until the save of the tree is committed: a save of 64 MB
#   that do not become smaller needs 67 MB, with chunks of 1 MB as with none. With files and the same chunks it needs
#   25 to 35, and takes no longer. Files without chunks need as much as OCDBT.
# Why it matters here: a checkpoint of the quickstart compresses 154 MB of tables and document caches to 31 MB, which
#   stood in memory beside the run, and at its peak (docs/log/2026-11.md, "The quickstart's memory, below its bar").
# Source: https://orbax.readthedocs.io/en/latest/guides/checkpoint/optimized_checkpointing.html, which recommends
#   chunks and data files of a size against memory when *loading*; observed with the versions below.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet orbax-checkpoint==0.12.8 tensorstore==0.1.86 jax==0.10.2 jaxlib==0.10.2 \
  numpy==2.4.6

cat > "$folder/save.py" <<'PYTHON'
import sys

import absl.logging
import numpy as np
import orbax.checkpoint as ocp

absl.logging.set_verbosity(absl.logging.FATAL)
place, ocdbt, chunk = sys.argv[1], *map(int, sys.argv[2:])
array = np.random.default_rng(0).integers(0, 256, (64, 1 << 20), np.uint8)


def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1000


def save(name, array, chunk):
    chunks = {"array": ocp.SaveArgs(chunk_byte_size=chunk or None)}
    arguments = ocp.args.PyTreeSave({"array": array}, save_args=chunks)
    handlers = ocp.type_handlers
    without_copy = handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = handlers.create_type_handler_registry((np.ndarray, without_copy))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=bool(ocdbt), type_handler_registry=registry)
    saver = ocp.Checkpointer(handler)
    saver.save(f"{place}/{name}", args=arguments)


save("before", array[:1, :1000], 0)  # what is imported and allocated once
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # sets the peak back
before = status("VmRSS")
save("measured", array, chunk)
print(round(status("VmHWM") - before))
PYTHON

"$folder/venv/bin/python" -c "
from importlib import metadata
print(*(f'{name} {metadata.version(name)}' for name in ('orbax-checkpoint', 'tensorstore')), sep=', ')"
declare -A needed
for how in "ocdbt:1 0" "ocdbt, chunks of 1 MB:1 1048576" "files:0 0" "files, chunks of 1 MB:0 1048576"; do
  name=${how%%:*}
  # shellcheck disable=SC2086  # two arguments
  needed[$name]=$("$folder/venv/bin/python" "$folder/save.py" "$folder/${name// /_}" ${how#*:})
  printf '%-22s %4d MB more, to save 64 MB\n' "$name" "${needed[$name]}"
done
for name in "ocdbt" "ocdbt, chunks of 1 MB" "files"; do
  if ((needed[$name] < 60)); then
    echo "The behaviour is another one now: $name needs much less memory than the data."
    exit 1
  fi
done
if ((needed["files, chunks of 1 MB"] > 45)); then
  echo "The behaviour is another one now: files with chunks need much memory, too."
  exit 1
fi
