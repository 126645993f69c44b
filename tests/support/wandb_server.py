"""A W&B server as small as the real client lets it be: it keeps what it is sent, in memory.

What it answers follows from what the client asks (wandb 0.31, wandb-workspaces 0.4), not from W&B's own server: it
checks no types, no permissions and no quota, and it draws nothing.
"""

import base64
import contextlib
import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, final
from urllib.parse import unquote

KEY = "local-0123456789012345678901234567890123456789"


@dataclass
class RunRecord:
    """What a run is, as sent: lines of history under their offset, so that one written twice is one."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Option -> value, without W&B's own."""
        stored = json.loads(self.fields.get("config") or "{}")
        return {key: item["value"] for key, item in stored.items() if key != "_wandb"}

    @property
    def of_wandb(self) -> str:
        """W&B's own part of the configuration: without it, the client takes the run for one that never began."""
        stored = json.loads(self.fields.get("config") or "{}")
        return json.dumps(stored.get("_wandb", {}).get("value", {}))

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in the order of their offsets."""
        lines = self.lines.get("wandb-history.jsonl", {})
        return [json.loads(lines[at]) for at in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        """The last one sent."""
        lines = self.lines.get("wandb-summary.json", {})
        return dict(json.loads(lines[max(lines)])) if lines else {}


@dataclass
class ArtifactRecord:
    """A version of an artifact: its manifest and the files that were uploaded for it."""

    name: str
    type: str
    digest: str
    aliases: list[str]
    run: str
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False


@final
class WandbServer:
    """The server and all it was sent.

    Args:
        mode: ok, error (500 to everything), or hang (accepts, and answers nothing until it is stopped).
    """

    def __init__(self, mode: str = "ok") -> None:
        self.mode = mode
        self.runs: dict[str, RunRecord] = {}
        self.artifacts: list[ArtifactRecord] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.storage: dict[str, bytes] = {}
        self.operations: list[str] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                """Nothing on the terminal."""

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that goes says nothing
                    super().handle()

            def do_POST(self) -> None:
                self.answer()

            do_PUT = do_GET = do_POST

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if server.mode == "hang":
                    server.stopping.wait()
                    self.close_connection = True
                    return
                if server.stopping.is_set():
                    self.close_connection = True
                    return
                status, value = (500, {"error": "broken"}) if server.mode == "error" else (200, {})
                if server.mode == "ok":
                    with server.lock:
                        value = server.handle(self.command, unquote(self.path), body)
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

        return Handler

    def handle(self, command: str, path: str, body: bytes) -> Any:
        """The answer to one request."""
        stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        if path == "/graphql":
            return self._graphql(json.loads(body))
        if stream:
            return self._stream(stream[3], json.loads(body))
        if command == "PUT":
            self.storage[path] = body
            uploaded = re.fullmatch(r"/storage/run/([^/]+)/(.+)", path)
            if uploaded:
                self.runs[uploaded[1]].files[uploaded[2]] = body
            manifest = re.fullmatch(r"/storage/manifest/(\d+)", path)
            if manifest:
                self.artifacts[int(manifest[1])].manifest = json.loads(body)
            return {}
        return self.storage.get(path, {})

    def _stream(self, run: str, body: dict[str, Any]) -> dict[str, Any]:
        for name, chunk in (body.get("files") or {}).items():
            lines = self.runs[run].lines.setdefault(name, {})
            for place, line in enumerate(chunk["content"]):
                lines[chunk["offset"] + place] = line
        if body.get("complete"):
            self.runs[run].fields["exit_code"] = body.get("exitcode")
        return {"limits": {}}

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        name = found[1] if found else ""
        self.operations.append(name)
        given = request.get("variables") or {}
        given = given.get("input", given)
        answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "UpsertBucket": self._upsert_run,
            "RunResumeStatus": self._resume_status,
            "CreateRunFiles": self._run_files,
            "CreateArtifact": self._create_artifact,
            "CreateArtifactManifest": self._artifact_manifest,
            "UpdateArtifactManifest": self._artifact_manifest,
            "CreateArtifactFiles": self._artifact_files,
            "CommitArtifact": self._commit_artifact,
            "upsertView": self._upsert_view,
        }
        if name in answers:
            return {"data": answers[name](given)}
        return {"data": self._plain(name, given)}

    def _plain(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answers that depend on nothing that was sent, but for the list of reports."""
        entity, project = given.get("entityName") or given.get("entity") or "team", given.get("name") or "p"
        views = [{"node": view} for view in self.views.values()]
        page = {"pageInfo": {"endCursor": None, "hasNextPage": False}}
        viewer = {"id": "me", "entity": "team", "username": "me", "email": "me@here", "flags": "{}", "admin": False}
        return {
            "viewer": {**viewer, "teams": {"edges": []}, "apiKeys": {"edges": []}},
            "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
            "project": {
                "id": "p",
                "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ==",
                "name": project,
                "entityName": entity,
                "allViews": {"edges": views, **page},
                "artifact": None,
            },
            "models": {"edges": [{"node": self._project(project, entity)}], **page},
            "entity": {"organization": None, "xxhashDigestsEnabled": False},
            "clientIDMapping": None,
            "view": next(iter(self.views.values()), None),
        }

    def _project(self, name: str, entity: str) -> dict[str, Any]:
        known = {"id": "p", "name": name, "entityName": entity, "createdAt": "2026-01-01T00:00:00Z"}
        return {**known, "isBenchmark": False, "user": None}

    def _upsert_run(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, RunRecord(name))
        run.fields |= {key: value for key, value in given.items() if value not in (None, "", [])}
        entity = {"id": "e", "name": given.get("entity") or "team"}
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.fields.get("displayName"),
            "description": None,
            "config": run.fields.get("config") or "{}",
            "sweepName": None,
            "historyLineCount": len(run.history),
            "project": {"id": "p", "name": given.get("project"), "entity": entity},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "e", "name": given.get("entity") or "team"}
        model = {"id": "p", "name": given.get("project"), "entity": entity, "bucket": None}
        if given["name"] in self.runs:
            run = self.runs[given["name"]]
            history = run.lines.get("wandb-history.jsonl", {})
            events = run.lines.get("wandb-events.jsonl", {})
            model["bucket"] = {
                "id": run.name,
                "name": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "displayName": run.fields.get("displayName"),
                "config": run.fields.get("config") or "{}",
                "logLineCount": len(run.lines.get("output.log", {})),
                "historyLineCount": len(history),
                "eventsLineCount": len(events),
                "tags": [],
                "notes": None,
                "wandbConfig": run.of_wandb,
                "historyTail": json.dumps([history[max(history)]] if history else []),
                "eventsTail": json.dumps([events[max(events)]] if events else []),
            }
        return {"model": model}

    def _run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/run/{run}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        name, digest = given["artifactCollectionName"], given["digest"]
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        same = [i for i, one in enumerate(self.artifacts) if (one.name, one.digest) == (name, digest) and one.committed]
        if same:
            number = same[0]
        else:
            number = len(self.artifacts)
            self.artifacts.append(ArtifactRecord(name, given["artifactTypeName"], digest, aliases, given["runName"]))
        state = "COMMITTED" if same else "PENDING"
        sequence = {"id": name, "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": str(number), "state": state, "artifactSequence": sequence}}}

    def _artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given.get("artifactID") or given.get("artifactManifestID")
        file = {"id": number, "uploadUrl": f"{self.url}/storage/manifest/{number}", "uploadHeaders": []}
        manifest = {"artifactManifest": {"id": number, "file": file}}
        return {"createArtifactManifest": manifest, "updateArtifactManifest": manifest}

    def _artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for file in given["artifactFiles"]:
            path = f"artifact/{file['artifactID']}/{file['name']}"
            url = f"{self.url}/storage/{path}"
            node = {"storagePath": path, "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _commit_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[int(given["artifactID"])]
        artifact.committed = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": artifact.digest}}}

    def _upsert_view(self, given: dict[str, Any]) -> dict[str, Any]:
        number = given.get("id") or base64.b64encode(f"View:{len(self.views) + 1}".encode()).decode()
        inserted = number not in self.views
        project = {"id": "p", "name": given.get("projectName"), "entityName": given.get("entityName")}
        view = self.views.setdefault(number, {"id": number, "project": project})
        view |= {key: value for key, value in given.items() if value is not None and key != "id"}
        view |= {"updatedAt": "2026-01-01T00:00:00Z", "createdAt": "2026-01-01T00:00:00Z"}
        return {"upsertView": {"view": view, "inserted": inserted}}

    def artifact_files(self, artifact: ArtifactRecord) -> dict[str, bytes]:
        """Content of a version's files by their names."""
        start = f"/storage/artifact/{self.artifacts.index(artifact)}/"
        return {path.removeprefix(start): body for path, body in self.storage.items() if path.startswith(start)}


@contextlib.contextmanager
def serving(mode: str = "ok") -> Iterator[WandbServer]:
    """A server for the length of a block."""
    server = WandbServer(mode)
    try:
        yield server
    finally:
        if not server.stopping.is_set():
            server.stop()


def client_of(server: WandbServer, folder: Path) -> dict[str, str]:
    """Environment of a client that knows this server, and keeps what it keeps in a folder."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    places = {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_CONFIG_DIR": str(home)}
    return {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false", **places}
