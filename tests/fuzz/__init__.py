"""One target for each decoder: bytes from anywhere are what they should be, or are refused; nothing else happens.

    python -m fuzz entry --seconds 60        (with tests/ and src/ on PYTHONPATH; `make fuzz` runs all of them)

`targets.py` holds the targets, plain functions of bytes that any fuzzer can drive. Coverage guides Atheris where it is
installed (`pip install atheris`); without it the runner mutates blindly. `tests/test_decoders.py` runs the same targets
under hypothesis.
"""
