"""For plans that reproduce failures, which import it by this name."""

from headstart.model.captured import (
    Binding,
    CapturedFunction,
    CapturedSource,
    Constant,
    Constexpr,
    Dtype,
    FunctionRef,
    Import,
    Items,
    Member,
    NamedTuple,
    NamedTupleValue,
    Namespace,
    Parameter,
    Table,
    Unbound,
)

__all__ = [
    "Binding",
    "CapturedFunction",
    "CapturedSource",
    "Constant",
    "Constexpr",
    "Dtype",
    "FunctionRef",
    "Import",
    "Items",
    "Member",
    "NamedTuple",
    "NamedTupleValue",
    "Namespace",
    "Parameter",
    "Table",
    "Unbound",
]
