"""Bytes on disk: digests, locks, checkpoints. Nothing here knows a model."""
