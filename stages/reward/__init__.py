"""The reward model: likelihoods of rankings (pure tensor maths), model, training, and its gate."""
