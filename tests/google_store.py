"""A server on this machine that speaks the part of Google's storage API that is used."""

import contextlib
import http.server
import json
import threading
import urllib.parse
from typing import ClassVar


class Google(http.server.BaseHTTPRequestHandler):
    """The part of Google's API that is used, for the bucket ``runs``, with its conditions."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # each answer would wait for 40 ms
    files: ClassVar[dict[str, tuple[int, bytes]]] = {}
    turn: ClassVar[threading.Lock] = threading.Lock()
    writes: ClassVar[int] = 0
    broken: ClassVar[list[int]] = []

    def do_GET(self):
        self.answer_all("read")

    def do_POST(self):
        self.answer_all("write")

    def do_DELETE(self):
        self.answer_all("delete")

    def answer_all(self, what):
        where = urllib.parse.urlsplit(self.path)
        query = {key: value[0] for key, value in urllib.parse.parse_qs(where.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = query.get("name") or urllib.parse.unquote(where.path.partition("/o/")[2])
        with self.turn:
            if self.broken:
                return self.answer(self.broken[-1], b"{}")
            if "/b/runs/" not in where.path:
                return self.answer(404, b'{"error": {"message": "no such bucket"}}')
            if what == "read" and not name:
                begin, end = query.get("startOffset", ""), query.get("endOffset") or "~"
                items = [{"name": key} for key in sorted(self.files) if begin <= key < end]
                return self.answer(200, json.dumps({"items": items}).encode())
            version, content = self.files.get(name, (0, b""))
            if query.get("ifGenerationMatch", str(version)) != str(version):
                return self.answer(412, b"{}")
            if what == "write":
                Google.writes += 1
                self.files[name] = (Google.writes, body)
                about = {"name": name, "size": str(len(body)), "generation": str(Google.writes)}
                return self.answer(200, json.dumps(about).encode())
            if not version:
                return self.answer(404, b"{}")
            if what == "delete":
                del self.files[name]
                return self.answer(204, b"")
            if query.get("alt") != "media":  # what is known of it, without its bytes
                about = {"name": name, "size": str(len(content)), "generation": str(version)}
                content = json.dumps(about).encode()
            kind, _, part = self.headers.get("Range", "").partition("=")
            if kind != "bytes":
                return self.answer(200, content, version)
            first, last = (int(end) for end in part.split("-"))
            if first >= len(content):
                return self.answer(416, b"", version)
            last = min(last, len(content) - 1)
            about = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], version, about)

    def answer(self, status, body, version=0, part=""):
        self.send_response(status)
        if part:
            self.send_header("Content-Range", part)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-goog-generation", str(version))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(monkeypatch):
    """``gs://runs`` is on this machine, and empty; the class that serves it, for its ``files``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Google)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
    monkeypatch.setattr(Google, "files", {})
    monkeypatch.setattr(Google, "broken", [])
    yield Google
    server.shutdown()
    server.server_close()
    thread.join()
