"""For plans that reproduce failures, which import it by this name."""

from headstart.model.values import (
    MAX_DEPTH,
    Encoded,
    constant,
    named_tuple_fields,
    replace_in_tuples,
    scalar,
)

__all__ = [
    "MAX_DEPTH",
    "Encoded",
    "constant",
    "named_tuple_fields",
    "replace_in_tuples",
    "scalar",
]
