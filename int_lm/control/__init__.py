"""Control: `python -m int_lm.control` trains an int8 recurrent policy from nothing.

environment.py   what an environment is, and where it is found by name
cart_pole.py pendulum.py acrobot.py          the environments in the box, in floats
from_gymnax.py from_jumanji.py from_brax.py  those of other packages (the extra `rl`)
border.py        the only place where floats of an environment become integers, and back
observations.py  running statistics of observations in integers, and their encoding as int8
policy.py        the policy: an architecture behind encoded observations
play.py          episodes, played together to their ends
episodes.py      what a population does in an environment, compiled
controller.py    the training loop with episodes
__main__.py      the command
"""
