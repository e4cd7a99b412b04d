"""Records -> figures, tables and pages that open from disk; it reads what was computed and starts nothing.

A notebook needs `theme`, `publish`, `show_table` and `numbers`; pages are made by `kbitlib.report.export` and
`kbitlib.report.site`, which are not loaded here because nbconvert takes a second to import.
"""

from kbitlib.report import numbers, theme
from kbitlib.report.figures import publish, show_table

__all__ = ["numbers", "publish", "show_table", "theme"]
