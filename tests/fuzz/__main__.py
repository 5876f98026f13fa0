"""`python -m fuzz TARGET …`: see `fuzz/__init__.py`. What a target raises is shown with the bytes that made it."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["headstart"]) if atheris else contextlib.nullcontext():
    from fuzz.targets import TARGETS, Target, seeds

MAX_INPUT = 1 << 16  # bytes


def main() -> int:
    """Fuzz one target, and return 1 if something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Feed a decoder what it does not expect.")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, help="folder of inputs, which new ones are added to")
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    for valid in seeds(arguments.target):
        target(valid)  # also loads what is loaded late
    if atheris is None:
        print("atheris is not installed: mutating without knowing what is covered")
        return blindly(arguments.target, target, arguments.seconds, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        corpus = arguments.corpus or Path(folder)
        corpus.mkdir(exist_ok=True)
        for number, valid in enumerate(seeds(arguments.target)):
            (corpus / f"valid{number}").write_bytes(valid)
        guided(target, corpus, arguments.seconds, arguments.seed)
    return 0


def guided(target: Target, corpus: Path, seconds: int, seed: int) -> None:
    """Guided by coverage; ends the process where something is found."""
    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={MAX_INPUT}", "-timeout=10"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


def blindly(name: str, target: Target, seconds: float, seed: int) -> int:
    """Mutations of valid inputs."""
    chance = random.Random(seed)
    valid = seeds(name)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = mutated(chance, valid)
        tried += 1
        try:
            target(data)
        except Exception:  # noqa: BLE001 - that is what is looked for
            traceback.print_exc()
            print(f"{name}, after {tried} inputs: {data!r}")
            return 1
    print(f"{name}: {tried} inputs, seed {seed}, nothing found")
    return 0


def mutated(chance: random.Random, valid: list[bytes]) -> bytes:
    """One of `valid`, with a few bytes changed, removed, inserted, doubled, or taken from another one."""
    data = bytearray(chance.choice(valid))
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        length = chance.choice([1, 1, 2, 4, 8, 64])
        other = chance.choice(valid)
        start = chance.randrange(len(other) + 1)
        data[at : at + chance.choice([0, length])] = chance.choice(
            [b"", chance.randbytes(length), bytes([chance.choice(_TELLING)]) * length, other[start : start + length]]
        )
    return bytes(data)


_TELLING = b"\x00\x01\x7f\x80\x90\xa0\xc0\xc1\xc7\xcf\xd3\xd6\xd9\xdc\xdd\xde\xdf\xff"  # to msgpack, or to numbers


if __name__ == "__main__":
    sys.exit(main())
