"""What a worker does besides its jobs, each a `run` that never ends: `runtime.py` starts them all."""
