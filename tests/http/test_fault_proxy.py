"""The proxy itself, where it is used from a test that is not asynchronous."""

from __future__ import annotations

import http.server
import threading
import urllib.request

import pytest

from tests.support_proxy import FaultProxy, reset


def test_a_proxy_in_a_thread_passes_on_and_breaks() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with FaultProxy.in_thread(server.server_port) as proxy:
            url = f"http://127.0.0.1:{proxy.port}/"
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
            proxy.fault = reset()
            with pytest.raises(OSError, match="reset"):
                urllib.request.urlopen(url, timeout=5)
            assert proxy.accepted == 2
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=5)
        server.shutdown()
