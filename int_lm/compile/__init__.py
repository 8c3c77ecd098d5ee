"""Compiles functions that JAX traces: `trace` reads them, `program` holds them, `c` writes C."""
