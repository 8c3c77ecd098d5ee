"""Build the kernels for CPUs: `python -m int_lm.native`. Without a compiler nothing is lost."""

from int_lm.native import build


def main() -> None:
    """Build, and say what came of it."""
    print(build.build())


if __name__ == "__main__":
    main()
