"""Mutations of bytes, of JSON and of YAML: damage as it happens, and malice as one can think of it.

All are functions of a `random.Random`, so that a number names a mutated file for ever.
"""

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

TRAVERSALS = (
    "../../etc/passwd",
    "/etc/passwd",
    "../outside/secret",
    "..",
    "./././",
    "a/../../outside/secret",
    "~/.netrc",
    "file:///etc/passwd",
)
NUMBERS = (
    *("0", "-0", "-1", "1", "255", "256", "65536", "65537", "2147483647", "2147483648"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "-9223372036854775809"),
    *("1e3", "1e308", "1e999", "-1e999", "0.5", "NaN", "Infinity", "-Infinity"),
    *("9" * 400, "9" * 5000, "0x" + "f" * 5000, "1" + "0" * 30),
)
TEXTS = (
    *('""', '"\\u0000"', '"a\\nb"', '"\\u001b[2J"', '"\\u202e"', '"\\ud800"', '"\\ufeff"'),
    *('"' + "x" * 5000 + '"', '"\U0001f600"', '"I8"', '"|O"', '"int8"', '"true"'),
    *(json.dumps(name) for name in TRAVERSALS),
)
SHAPES = (
    *("null", "true", "false", "[]", "{}", "[[]]", "[null]", '{"a": {"a": 1, "a": 2}}', '[""]'),
    *(
        "[" * 40 + "]" * 40,
        "[" * 20_000 + "]" * 20_000,
        "[" * 20_000,
        '{"a":' * 200 + "1" + "}" * 200,
    ),
    *("[" + "[]," * 1000 + "[]]", "[" + "0," * 2000 + "0]", "[1, [2, [3]]]", "[-1, 1099511627776]"),
)
FRAGMENTS = (*NUMBERS, *TEXTS, *SHAPES)
BINARY_NUMBERS = (
    0,
    1,
    127,
    128,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
)
_MARK = "\x01mutated\x01"  # stands for a fragment until the text is written


def _span(rng: Random, data: bytes, most: int = 64) -> tuple[int, int]:
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + rng.randint(1, most))


def flip_bits(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(data) + 1), len(data) - 1))]


def insert(rng: Random, data: bytes) -> bytes:
    begin, _ = _span(rng, data)
    new = rng.choice((b"\0", b"\xff", b"\n", b" ", rng.randbytes(rng.choice((1, 8, 300, 4096)))))
    return data[:begin] + new * rng.choice((1, 1, 8, 1000)) + data[begin:]


def delete(rng: Random, data: bytes) -> bytes:
    begin, end = _span(rng, data, rng.choice((1, 8, 4096)))
    return data[:begin] + data[end:]


def duplicate(rng: Random, data: bytes) -> bytes:
    begin, end = _span(rng, data, rng.choice((8, 64, 4096)))
    place, _ = _span(rng, data)
    return data[:place] + data[begin:end] * rng.choice((1, 1, 5)) + data[place:]


def swap(rng: Random, data: bytes) -> bytes:
    size = max(1, min(rng.choice((1, 8, 64, 4096)), len(data) // 2))
    first, second = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    second = max(second, first + size)
    one, other = data[first : first + size], data[second : second + size]
    return data[:first] + other + data[first + size : second] + one + data[second + size :]


def huge(rng: Random, data: bytes) -> bytes:
    """A binary number somewhere, often at the beginning, where sizes are."""
    begin = rng.choice((0, 0, 8, rng.randrange(len(data) + 1)))
    width = rng.choice((1, 2, 4, 8))
    number = rng.choice(BINARY_NUMBERS) % (1 << 8 * width)
    return data[:begin] + number.to_bytes(width, "little") + data[begin + width :]


def digits(rng: Random, data: bytes) -> bytes:
    """A number of a text replaced."""
    return _replaced(rng, data, rb"-?\d+(\.\d+)?", rng.choice(NUMBERS).encode())


def word(rng: Random, data: bytes) -> bytes:
    """A word of a text replaced: by a path, by another word of it, or by control characters."""
    words = re.findall(rb"[\w./-]{2,}", data[:65536]) or [b"x"]
    others = (
        rng.choice(TRAVERSALS).encode(),
        rng.choice(words),
        b"\x00\x1b[2J\x7f",
        b"\xe2\x80\xae",
    )
    return _replaced(rng, data, rb"[\w./-]{2,}", rng.choice(others))


def _replaced(rng: Random, data: bytes, pattern: bytes, new: bytes) -> bytes:
    found = [match.span() for match in re.finditer(pattern, data[:65536])]
    if not found:
        return flip_bits(rng, data)
    begin, end = rng.choice(found)
    return data[:begin] + new + data[end:]


BYTES: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(flip_bits, flip_bits, flip_bits, truncate, insert, delete, duplicate, swap),
    *(huge, digits, digits, word, word),
)


def of_bytes(rng: Random, data: bytes) -> bytes:
    """One to three mutations, and never the same bytes."""
    changed = data
    for _ in range(rng.choice((1, 1, 2, 3))):
        changed = rng.choice(BYTES)(rng, changed)
    return changed if changed != data else flip_bits(Random(0), data)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value below one of JSON, itself included."""
    below = value.items() if isinstance(value, dict) else []
    below = enumerate(value) if isinstance(value, list) else below
    return [path, *(place for key, item in below for place in _places(item, (*path, key)))]


def of_json(rng: Random, value: Any) -> bytes:
    """JSON text of a value of which an entry is replaced, removed, renamed or written twice."""
    value = json.loads(json.dumps(value))
    places = [place for place in _places(value) if place]
    fragment = rng.choice(FRAGMENTS)
    place = rng.choice(places) if places and rng.random() < 0.97 else ()
    if not place:
        return fragment.encode()
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    key, kind = place[-1], rng.randrange(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice((*TRAVERSALS, "", "\x00", "\u202e", "direct", "sha256"))] = parent.pop(
            key
        )
    elif kind == 2 and isinstance(parent, dict):
        parent[key + _MARK] = parent[key]  # and the fragment under the same name
    elif kind == 3 and isinstance(parent, list):
        parent.append(parent[key])
    elif kind == 4 and len(places) > 1:
        other = json.loads(json.dumps(value))
        for step in rng.choice(places):
            other = other[step]
        parent[key] = other
    else:
        parent[key] = _MARK
    text = json.dumps(value, indent=rng.choice((None, 2)))
    mark = json.dumps(_MARK)
    text = text.replace(mark, fragment).replace(mark[1:-1] + '"', '"')
    return text.encode("utf-8", "surrogatepass")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = (
    *(BOMB, "model: &m {width: 8}\nes: *m\n", "model:\n  <<: {width: 8}\n", "model: &m [*m]\n"),
    *(
        "model: !!python/object/apply:os.system ['true']\n",
        "run: !!binary aGVsbG8=\n",
        "!!int ''\n",
    ),
    *("run:\n  steps: 0x" + "f" * 5000 + "\n", "run:\n  steps: " + "9" * 5000 + "\n"),
    *("run:\n  steps: 1" + ":59" * 1000 + "\n", "run:\n  dir: 0001-01-01T00:00:00+23:59\n"),
    *("[" * 5000 + "]" * 5000, "{a: " * 1000 + "1" + "}" * 1000, "- " * 1000 + "a\n"),
    *(
        "model:\n  width: 8\n  width: 16\n",
        "? [a, b]\n: 1\n",
        "? {a: b}\n: 1\n",
        "=: 1\n",
        "%TAG ! x\n",
    ),
    *(
        "--- 1\n--- 2\n",
        "model: {width: .inf}\n",
        "es: {alpha: 1e999}\n",
        "\ufeffmodel: {}\n",
        "~: {}\n",
    ),
    *(
        'run: {dir: "\\0"}\n',
        'run: {dir: "\\ud800"}\n',
        "run: {dir: '../../etc'}\n",
        "|\n" + " x\n" * 1000,
    ),
)


def of_yaml(rng: Random, data: bytes) -> bytes:
    """YAML text changed as bytes, with a fragment for a value, or with one of `YAMLS` added."""
    kind = rng.randrange(5)
    if kind < 2:
        return of_bytes(rng, data)
    if kind == 2:
        text = rng.choice(YAMLS).encode("utf-8")
        return rng.choice((text, data + text, text + data))
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    if kind == 3:
        key, _, _ = lines[place].partition(b":")
        lines[place] = key + b": " + rng.choice(FRAGMENTS).encode("utf-8", "surrogatepass")
    else:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)
