"""Guesses what a table is and what its columns hold, for `tutelage inspect`, `init` and `check`."""
