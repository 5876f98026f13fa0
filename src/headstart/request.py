"""For plans that reproduce failures, which import it by this name."""

from headstart.model.request import (
    Attributes,
    CompileRequest,
    TupleType,
    check_plain,
    to_target,
    type_text,
)

__all__ = [
    "Attributes",
    "CompileRequest",
    "TupleType",
    "check_plain",
    "to_target",
    "type_text",
]
