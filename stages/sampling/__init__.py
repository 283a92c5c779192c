"""Sampling: prompts, samplers, and the episodes that they return."""
