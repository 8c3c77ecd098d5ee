"""What JAX traces, without JAX: `trace` reads it, `program` holds it, `c` writes it as C."""
