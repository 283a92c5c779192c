"""Scorers and judges: one way from an artifact, a folder, a Hub id or a function to scores."""
