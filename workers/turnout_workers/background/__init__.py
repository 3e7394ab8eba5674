"""What a worker does besides its jobs, again and again: `runtime.py` keeps it all up."""
