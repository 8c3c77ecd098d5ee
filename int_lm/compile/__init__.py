"""Compiles functions that JAX traces.

`trace` reads them, `program` holds them; `c` writes C of one stream, `tiles` C of a tile of
members, and `pallas_kernel` makes a kernel for GPUs.
"""
