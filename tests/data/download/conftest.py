"""A server on loopback."""

import http.server
import threading

import pytest


@pytest.fixture
def served(tmp_path):
    """A folder, the loopback address that serves it, and the paths asked for."""
    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path / "served"))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments):
            pass

    (tmp_path / "served").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield tmp_path / "served", f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()
