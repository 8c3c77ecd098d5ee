"""Integer arithmetic: rounding, tables and noise. The one home of every rounding."""
