"""The mathematics: pure functions of tensors. No config objects, no input or output.

In reading order: `masking` (sums and means of what a mask lets through), `aggregation` (from
per-token losses to one number that no cutting of the batch changes), `logprobs` (from hidden
states to the [B, T] grid: the one shift), `kl`, `advantages`, then the losses: `sft_losses`,
`preference_losses`, `policy_losses`, `value_losses`. Formulas, signs, sources and tests are
listed in docs/numerics.md.

Conventions: per-token tensors are [B, T] and entry t speaks about token t; masks are bool,
True at response tokens, and may have gaps; whatever stands outside a mask, NaN included,
changes no result and receives no gradient. Losses are minimised and come unreduced.
"""
