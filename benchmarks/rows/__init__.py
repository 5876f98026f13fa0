"""The rows of the table.

A row module has `NUMBERS`, the rows that it answers, and `measure(bench)`, which yields their lines.
"""

from benchmarks.rows import claim, cold, imports, manifest, memory, overhead, start, warm

ALL = (claim, cold, start, overhead, warm, imports, memory, manifest)
