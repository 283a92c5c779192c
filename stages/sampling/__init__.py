"""Sampling: prompts, samplers, and the episodes they return."""
