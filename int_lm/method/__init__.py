"""The method: one step of training in integers: perturb, objective, votes, update."""
