"""The `eval` stage: every model on held-out prompts, by judges that PPO never optimised."""
