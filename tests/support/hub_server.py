"""A stand-in for the Hugging Face hub: serves files of models, and takes uploads, over HTTP on this machine."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub
import pytest

Files = dict[str, dict[str, bytes]]  # ORG/NAME -> file -> content
COMMIT = "0" * 40


class _Handler(BaseHTTPRequestHandler):
    files: Files

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.files:
            name = "/".join(parts[2:4])
            known = [{"rfilename": file} for file in self.files[name]]
            self._send(json.dumps({"id": name, "sha": COMMIT, "siblings": known}).encode())
            return
        content = self.files.get("/".join(parts[:2]), {}).get("/".join(parts[4:])) if "resolve" in parts else None
        if content is None:
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(content).hexdigest()
        self._send(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.files.setdefault(name, {})
            self._send(json.dumps({"url": f"http://{self.headers['Host']}/{name}", "name": name}).encode())
            return
        name = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            answers = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            self._send(json.dumps({"files": answers}).encode())
        elif "/commit/" in self.path:
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    self.files[name][told["value"]["path"]] = base64.b64decode(told["value"]["content"])
            url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            self._send(json.dumps({"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}).encode())
        else:
            self._send(b"{}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, cache: str, files: Files | None = None) -> Iterator[Files]:
    """A hub that the library talks to instead of the real one; its models, which uploads add to."""
    held: Files = {} if files is None else files
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"files": held}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (huggingface_hub.constants, huggingface_hub.file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
