"""The `export` stage: writes the trained policy in several formats, and evaluates each file as written."""
