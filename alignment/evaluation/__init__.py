"""Is the trained policy better than its start, by how much, and how sure are we?

Pure functions on records and numpy, in reading order: `samples` (what was sampled and scored),
`policy_comparison` (PPO against SFT), `pair_accuracy` (the reward model against gold, people and
the length baseline), `gold_correlation` (is gold more than a surface feature?),
`label_statistics` (who ranked, and how they agree), `result` (all of it, and its file).
Every figure is an `Interval` of `alignment.statistics.bootstrap`, resampled by prompt.
"""
