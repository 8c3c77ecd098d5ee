"""Plug-ins, outside int_lm: one architecture, estimator, objective and update, a file each."""
