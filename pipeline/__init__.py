"""Recipes, artifacts and the runner. Importing this package must stay cheap: no torch, no data, no stages."""
