"""torch.compile with headstart; see `headstart.adapters.inductor`."""

from headstart.adapters.inductor import backend, current, disable, enable

__all__ = ["backend", "current", "disable", "enable"]
