"""What a worker does in the background, started and kept running by `runtime.py`."""
