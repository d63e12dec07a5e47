"""The loops: SFT, reward model and PPO, each one file, read from top to bottom."""
