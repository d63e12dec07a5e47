"""What a run will need before it starts: memory of each role, placement, time of a PPO step.

Pure arithmetic on settings and shapes; loads neither torch nor ray.
"""
