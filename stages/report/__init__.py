"""What a run says at its end: one HTML file that needs nothing else, and the same numbers as JSON."""
