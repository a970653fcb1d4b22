"""A TCP relay in front of a server that holds back everything after so many bytes, until told to go on."""

import contextlib
import select
import socket
import threading


class Wire:
    """Relays 127.0.0.1:``port`` to ``target_port``. ``stop_after_bytes`` counts what the server sent, or the client."""

    def __init__(self, target_port: int, *, stop_after_bytes: int | None = None, count_client: bool = False) -> None:
        self._target_port, self._stop_after_bytes, self._count_client = target_port, stop_after_bytes, count_client
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.relayed_bytes = 0
        self.stopped = threading.Event()
        self._go = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target_port))
                except OSError:  # the server is down for now
                    client.close()
                    continue
                self._pairs.append((client, server))
                threading.Thread(target=self._relay, args=(client, server), daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client, server:
            while True:
                if self.stopped.is_set() and not self._go.wait(0.05):
                    if _closed(client):
                        return
                    continue
                for source in select.select([client, server], [], [], 0.2)[0]:
                    data = source.recv(16384)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if (source is client) is self._count_client:
                        self._count(len(data))

    def _count(self, sent_bytes: int) -> None:
        self.relayed_bytes += sent_bytes
        limit = self._stop_after_bytes
        if limit is not None and self.relayed_bytes >= limit and not self._go.is_set():
            self.stopped.set()

    def arm(self, after_bytes: int) -> None:
        """Hold back everything once this many more bytes have passed, whatever happened before."""
        self._go.clear()
        self.stopped.clear()
        self._stop_after_bytes = self.relayed_bytes + after_bytes

    def go_on(self) -> None:
        """Let everything pass from now on."""
        self._go.set()

    def cut(self) -> None:
        """Break every connection."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()
        self._go.set()


def _closed(end: socket.socket) -> bool:
    """Whether the other side has gone."""
    if not select.select([end], [], [], 0)[0]:
        return False
    return end.recv(1, socket.MSG_PEEK) == b""
