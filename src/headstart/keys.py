"""How the identity of a kernel is told; see `headstart.model.keys`."""

from headstart.model.keys import (
    KEY_FORMAT,
    Component,
    digest,
    entry_key,
    explain,
)

__all__ = [
    "KEY_FORMAT",
    "Component",
    "digest",
    "entry_key",
    "explain",
]
