"""PPO under a KL penalty: pure tensor maths (kl, advantages, losses), trajectories, rollout, trainer, stage."""
