"""The `base` stage: loads or pretrains the model, and finds out what can be done with it."""
