"""Tuning: `python -m int_lm.tune` goes on from weights with a reward as the objective.

prompts.py   the prompts of a shipped task or of a file, for training and held out
judge.py     computes the rewards of completions, in this process or in others (worker.py)
tuner.py     the training loop with rewards
__main__.py  the command

This file imports nothing, so that the processes of `worker.py` start fast.
"""
