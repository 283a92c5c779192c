"""The built-in task: venues to describe, simulated annotators, and the judge of facts."""
