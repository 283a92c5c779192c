"""Recipes: one frozen dataclass per section, their rules, `extends`, `--set`, and where each value was set."""
