"""Was it worth it? Every model on held-out prompts, by judges that PPO never optimised."""
