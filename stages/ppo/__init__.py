"""PPO under a KL penalty. Maths: advantages, kl, losses. Steps: experience, update. Around them: trainer, stage."""
