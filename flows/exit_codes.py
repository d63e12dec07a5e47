"""Exit codes of the `alignflow` command; 0 is success and 2, wrong usage, is argparse's own."""

FAILED = 1
WAITING_FOR_PEOPLE = 75
"""EX_TEMPFAIL: nothing is wrong, try again later."""
INTERRUPTED = 130
