"""The `base` stage: loads or pretrains the model, checks it and records its capabilities."""
