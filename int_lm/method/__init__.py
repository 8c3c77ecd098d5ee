"""The method: a step of training in integers (perturb, objective, votes, update)."""
