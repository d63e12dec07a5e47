"""Rankings, agreement and intervals: pure functions of numpy arrays.

`agreement` (alpha and kappas), `bootstrap` (a mean and how far to trust it, by prompt),
`ranking` (worths from comparisons and rankings, by maximum likelihood), `correlation`,
`repetition` (of a text).
Formulas, sources and tests are listed in docs/numerics.md.
"""
