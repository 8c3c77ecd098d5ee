"""Integer arithmetic: rounding, tables and noise. All roundings are defined here."""
