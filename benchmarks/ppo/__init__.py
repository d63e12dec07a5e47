"""PPO against TRL's last PPO, step by step on the same machine: `make bench-ppo`."""
