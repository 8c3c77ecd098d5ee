"""Build the kernels for CPUs: `python -m int_lm.native`. Without a compiler nothing is lost."""

from int_lm import native


def main() -> None:
    """Build, and say what came of it."""
    print(native.build())


if __name__ == "__main__":
    main()
