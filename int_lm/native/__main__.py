"""Build the kernels for CPUs: `python -m int_lm.native`. int_lm also works without them."""

from int_lm.native import build


def main() -> None:
    """Build the kernels and print whether they were built."""
    print(build.build())


if __name__ == "__main__":
    main()
