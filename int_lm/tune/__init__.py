"""Tuning: `python -m int_lm.tune` goes on from weights with a reward as the objective.

prompts.py   what members are asked: of a shipped task, or of a file; what is held out
judge.py     rewards of completions, each computed once, here or in processes (worker.py)
tuner.py     the training loop with rewards: what a step does, what is logged
__main__.py  the command

Importing this imports nothing: `worker.py` starts with it.
"""
