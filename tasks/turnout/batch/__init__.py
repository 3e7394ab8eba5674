"""Batches: a file of requests in, a file of results out, bounded in memory and resumable at any moment."""
