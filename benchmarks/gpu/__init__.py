"""The training side on one GPU: SFT, reward model and PPO updates, packed and padded."""
