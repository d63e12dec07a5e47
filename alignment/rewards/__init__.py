"""What PPO is paid for: a trained model, an ensemble, a Python function, a scorer behind HTTP, or
a weighted sum of them; and monitors for a policy that games it.

Each is a `ScoreModel` (`alignment.training.roles`), so the loop cannot tell them apart.
"""
