"""Statistics of annotators: agreement, self-consistency, reliability, strengths of models."""
