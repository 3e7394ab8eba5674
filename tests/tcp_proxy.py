"""A TCP proxy between a worker and its Redis: it loses replies to chosen requests, delays all, parts the two, or leads
elsewhere."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Passes everything on until told otherwise; all connections share one instruction."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._lock = threading.Lock()
        self._needle = b""
        self._left = 0
        self._kept = 0
        self.cut_at: list[float] = []
        """When replies were lost so far (Unix time), in order."""
        self._open = threading.Event()
        self._open.set()
        self.delay_s = 0.0
        """Before each reply."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def cut(self) -> int:
        """How many replies were lost so far."""
        return len(self.cut_at)

    def cut_replies(self, needle: bytes, times: int, kept: int = 0) -> None:
        """Of the next `times` requests with `needle`, let the server do the work, pass `kept` bytes on, hang up."""
        with self._lock:
            self._needle, self._left, self._kept = needle, times, kept

    def part(self) -> None:
        """Let nothing pass, either way, and end no connection: a network partition."""
        self._open.clear()

    def rejoin(self) -> None:
        """Let it all pass again, late as it is."""
        self._open.set()

    def lead_to(self, port: int) -> None:
        """Lead new connections there, and leave those that are open: as a name or a balancer does in a failover."""
        self._target = ("127.0.0.1", port)

    def close(self) -> None:
        self._open.set()
        self._listener.close()

    def _doomed(self, request: bytes) -> bool:
        with self._lock:
            if not self._left or self._needle not in request:
                return False
            self._left -= 1
            return True

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            doomed = threading.Event()
            threading.Thread(target=self._replies, args=(client, server, doomed), daemon=True).start()
            while request := client.recv(1 << 16):
                if self._doomed(request):
                    doomed.set()
                self._open.wait()
                server.sendall(request)
            server.shutdown(socket.SHUT_WR)

    def _replies(self, client: socket.socket, server: socket.socket, doomed: threading.Event) -> None:
        with suppress(OSError):
            while reply := server.recv(1 << 16):
                if doomed.is_set():
                    client.sendall(reply[: self._kept])
                    with self._lock:
                        self.cut_at.append(time.time())
                    break
                time.sleep(self.delay_s)
                self._open.wait()
                client.sendall(reply)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def between(target_port: int) -> Iterator[Proxy]:
    """A proxy on a free loopback port, before the server at `target_port`."""
    proxy = Proxy(target_port)
    try:
        yield proxy
    finally:
        proxy.close()
