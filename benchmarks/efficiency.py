"""Predicted efficiency of many devices: what crosses over assumed links, and measured arithmetic.

    python benchmarks/efficiency.py [--config FILE ...] [--devices 8 64 1024 16384]

Nothing is measured here. A step on n devices is taken to last as long as a device's share of the
operations at a rate measured on one (docs/log/2026-11.md#2026-11-27-an-h100), the update of the
weights, which is not divided unless votes are sharded, that of direct connections, which never is,
and the collectives of docs/scaling.md: bytes over a link's bandwidth, and a latency for each of the
log2(n) hops of every message. Efficiency is that of n devices: the time of one, over n times the
time of n. It says nothing of how well few members fill a device.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import scaling

from int_lm import config
from int_lm.config import Config
from int_lm.errors import UserError
from int_lm.training import plan

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("replicated", "sharded")
CONFIGURATIONS = ("gpu_small", "gpu_base", "paper_egg")
# measured on an H100 at D 256, P 16 384, T 20: whole steps, with votes of units and plain ones
OPERATIONS_PER_S = {"unit": 80e12, "eggroll": 115e12}
UPDATE_SECONDS = 0.2e-9  # of a weight, likewise
# assumed: a reading moves so many bytes for every token of every table, on each device
TABLE_BYTES, MEMORY_BYTES_PER_S = 16, 2.5e12


@dataclasses.dataclass(frozen=True)
class Links:
    """What connects devices.

    Attributes:
      near: devices of one host. near_bandwidth, far_bandwidth: bytes/s that a device receives.
      latency: seconds of a hop.
    """

    near: int = 8
    near_bandwidth: float = 400e9
    far_bandwidth: float = 45e9
    latency: float = 8e-6


def seconds(settings: Config, devices: int, sharded: bool, links: Links) -> float:
    """Of a step on so many devices."""
    es, counted = settings.es, plan.costs(settings, scaling.VOCAB_SIZE)
    tokens = es.population * es.segment_length
    arithmetic = counted.operations * tokens / devices / OPERATIONS_PER_S[es.votes]
    update = UPDATE_SECONDS * counted.weights / (devices if sharded else 1)
    entries = len(settings.model.direct) * tokens // 2 * scaling.VOCAB_SIZE
    update += entries * TABLE_BYTES / MEMORY_BYTES_PER_S
    if devices == 1:
        return arithmetic + update
    passing = {"all-reduce": 2.0, "reduce-scatter": float(devices)}  # of the bytes in the formula
    formula = scaling.formula(settings, scaling.VOCAB_SIZE, devices, sharded)
    crossing = sum(passing.get(kind, 1.0) * size for kind, size in formula.items())
    bandwidth = links.near_bandwidth if devices <= links.near else links.far_bandwidth
    hops = math.ceil(math.log2(devices))
    return arithmetic + update + crossing / bandwidth + len(formula) * hops * links.latency


def largest(settings: Config) -> Config:
    """The configuration with its population doubled for as long as its votes fit int32."""
    while True:
        es = dataclasses.replace(settings.es, population=2 * settings.es.population)
        try:
            settings = config.validate(dataclasses.replace(settings, es=es))
        except UserError:
            return settings


def cell(settings: Config, devices: int, links: Links) -> str:
    """Efficiency with the better of both ways to update, and which that is."""
    if settings.es.streams % devices:
        return "fewer streams than devices"
    alone = seconds(settings, 1, False, links)
    times = {name: seconds(settings, devices, name == "sharded", links) for name in WAYS}
    best = min(times, key=lambda name: times[name])
    return f"{alone / devices / times[best]:.2f} ({best}, {1e3 * times[best]:,.1f} ms)"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", default=CONFIGURATIONS, help="names in configs/")
    parser.add_argument("--devices", nargs="+", type=int, default=[8, 64, 1024, 16384])
    arguments = parser.parse_args()
    print("| configuration | population | " + " | ".join(map(str, arguments.devices)) + " |")
    print("|---" * (2 + len(arguments.devices)) + "|")
    for name in arguments.config:
        settings = config.validate(config.load(ROOT / "configs" / f"{name}.yaml"))
        for sized in dict.fromkeys((settings.es.population, largest(settings).es.population)):
            es = dataclasses.replace(settings.es, population=sized)
            chosen = dataclasses.replace(settings, es=es)
            cells = [cell(chosen, devices, Links()) for devices in arguments.devices]
            print(f"| `{name}` | {sized:,} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
