"""Demonstrations, prompts and rankings: their types, how tables of them are read, and measures of rankings."""
