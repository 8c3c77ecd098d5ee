"""Models: parameters, perturbation, layers, architectures, context tables, likelihood."""
