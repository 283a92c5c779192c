"""Demonstrations, prompts and rankings: where they come from, what shape they have, how they are judged."""
