"""Recipes, artifacts, the runner and the command line. Importing it must stay cheap: no torch, no data, no
stages."""
