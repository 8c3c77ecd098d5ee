"""Plug-ins: one value of each kind that a method is made of, in one file each, outside int_lm."""
