"""The reward model: likelihoods of rankings, training, ensembles, quality on held-out prompts, the gate."""
