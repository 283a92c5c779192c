"""The `export` stage: the trained policy in the formats that others read, each measured as it was written."""
