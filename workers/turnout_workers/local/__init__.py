"""Everything on one machine, in child processes: Redis, a configuration, workers, perhaps a simulated fleet."""

from turnout_workers.local.running import Local, running

__all__ = ["Local", "running"]
