"""The report of a run: one HTML file that loads nothing, and the same numbers as JSON."""
