"""`runs/<name>/report.html`: what a run found, in one file that opens without a network.

Built from the run's files only, so it can be written again at any time, for a run that is not
finished too. In reading order: `inputs` (the files), `markup` (HTML that escapes by itself),
`charts` (plots as SVG), one module a section, `page` (all of it in order).
"""

from flows.report.page import write_report

__all__ = ["write_report"]
