"""The training library of alignflow, in reading order.

- `alignment.config`: every setting of every stage, as frozen pydantic models.
- `alignment.records`: prompts, responses and rankings as plain frozen records (no torch).
- `alignment.experience`: token batches and what PPO learns about them, step by step (torch).
- `alignment.objectives`: the mathematics, pure functions of tensors.
- `alignment.statistics`: rankings, agreement and intervals, pure functions of numpy arrays.
- `alignment.data`, `alignment.models`: from files and weights to batches and modules.
- `alignment.training`: the loops, written against the protocols of `alignment.training.roles`.
- `alignment.roles_local`: those roles in one process, without Ray.
- `alignment.cluster`: those roles as Ray actors around DeepSpeed and vLLM.

Nothing is imported here, so `import alignment.config` loads neither torch nor ray.
"""
