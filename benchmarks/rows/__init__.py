"""The rows of the table.

A row module has `NUMBERS`, the rows that it answers, and `measure(bench)`, which yields their lines.
"""

from benchmarks.rows import (
    claim,
    cold,
    confined,
    cutoff,
    imports,
    launches,
    manifest,
    memory,
    overhead,
    shared,
    signed,
    start,
    warm,
)

ALL = (claim, cold, start, overhead, warm, imports, memory, manifest, launches, shared, cutoff, confined, signed)
