"""Clients for producers: `Client` for ordinary code, `AsyncClient` for asyncio, over one core."""

from turnout.client.blocking import Client, Job
from turnout.client.nonblocking import AsyncClient, AsyncJob
from turnout.client.streaming import Restarted

__all__ = ["AsyncClient", "AsyncJob", "Client", "Job", "Restarted"]
