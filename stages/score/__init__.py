"""The reward model on data: the commands `score` and `evaluate-reward`, and what a server would need.

`model` has a loaded reward model with one function that scores texts, and `source` loads it from a run, a folder or
the Hub.
"""
