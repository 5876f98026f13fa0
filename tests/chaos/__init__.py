"""Breaks what can break while several programs compile, and counts what became of their kernels.

    python -m chaos --seed 7 --seconds 60        (PYTHONPATH: see `make chaos`)

    driver ── starts ─▶ clients (program.py) ─▶ their services, zygotes, workers
       │  seeded:  kill, stop, damage, fill …     (faults.py; who is alive: world.py)
       │           of the stores that hosts share, and their servers                 (stores.py)
       │           of a farm, and its Ray cluster                                    (farm.py)
       └─ after each round: what must hold          (checks.py) ─▶ summary table

A round has a cache folder that earlier rounds filled, another one that is empty, and one shared service or one for each
client. Its clients ask for many small kernels, which overlap. Faults come at random moments until the round's time is
up; then everything that was stopped goes on, and the clients are left to finish.

What is random comes from the seed: which faults, when, to whom, for how long. The processes' own timing does not, so a
seed that found something finds it often, not always.
"""
