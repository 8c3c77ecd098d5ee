"""The training program: its loop, log, plan, signals and processes."""
