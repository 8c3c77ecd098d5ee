"""The method: perturb, objective, votes, update. One step of training, in integers."""
