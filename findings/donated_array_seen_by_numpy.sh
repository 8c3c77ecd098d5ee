#!/usr/bin/env bash
# jax on CPUs: a donated array that NumPy still sees is neither overwritten nor deleted.
#
# One would guess: np.asarray(x) shares the memory of x on a CPU, without a copy. A jitted function that x is donated
#   to writes into that memory, so the view changes under the reader's feet, or at least x is deleted.
# What happens: as long as the view lives, the donation does not take place. Without any warning the call leaves x and
#   the view as they are, x can still be used, and the result takes new memory. Once the view is gone, a donation is
#   one again: same memory, x deleted. A view that was made and let go before the call does not matter.
# Why it matters here: the context tables of a run are donated to every step. A save that reads them through NumPy is
#   safe beside the next step, but holds a second copy of all tables, 200 MB in the quickstart. No error says so; it
#   shows in the memory alone (docs/log/2026-11.md, "What people meet: signals, vocabularies and saves").
# Source: documentation, https://docs.jax.dev/en/latest/buffer_donation.html, which says that a donated buffer is
#   shared with the result and does not speak of views; openxla/xla, xla/pjrt/common_pjrt_client.cc, where a comment
#   at `allow_fallback_for_donation` says that on CPUs a donation may become a copy.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W error - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print(f"jax {jax.__version__}, jaxlib {jax.lib.__version__}, numpy {np.__version__}")
add = jax.jit(lambda x: x + 1, donate_argnums=0)


def turn(look):
    """(the result lies where x lay, x is deleted, what the view says, the result)"""
    x = jax.block_until_ready(jnp.zeros(1 << 20, jnp.int32))
    place = x.unsafe_buffer_pointer()
    view = look(x)
    if view is not None and view.ctypes.data != place:
        sys.exit("The behaviour is another one now: np.asarray makes a copy of an array of the CPU.")
    result = jax.block_until_ready(add(x))
    seen = None if view is None else set(view.tolist())
    return result.unsafe_buffer_pointer() == place, x.is_deleted(), seen, set(result.tolist())


def let_go(x):
    np.asarray(x).sum()


expected = {
    "no view": (lambda x: None, (True, True, None, {1})),
    "view let go": (let_go, (True, True, None, {1})),
    "view alive": (np.asarray, (False, False, {0}, {1})),
}
for name, (look, wanted) in expected.items():
    same, deleted, seen, result = found = turn(look)
    print(f"{name:12} result in the memory of x: {same}, x deleted: {deleted}, view: {seen}, result: {result}")
    if found != wanted:
        sys.exit(f"The behaviour is another one now: with {name}, a donation does not do what it did.")
PYTHON
