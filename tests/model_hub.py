"""A Hugging Face hub on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = "me/data"
File = Callable[[str, str], bytes | None]  # model, name -> content


@dataclass
class ModelHub:
    """Where it is reached, and what it was asked for."""

    address: str
    asked: list[str] = field(default_factory=list)

    def environment(self, home: Path) -> dict[str, str]:
        """With these variables a process reads this hub, and keeps its files below `home`."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
        }


def files_below(folder: Path) -> File:
    """The models are folders in this one, or each of them is this one."""

    def file(model: str, name: str) -> bytes | None:
        places = (folder / model.partition("/")[2] / name, folder / name)
        return next((path.read_bytes() for path in places if path.is_file()), None)

    return file


@contextmanager
def model_hub(file: File, *, data: Mapping[str, bytes] | None = None) -> Iterator[ModelHub]:
    """A hub of these files until the end of the block. It knows no model me/nobody; a model's commit is its weights.

    data  the files of its one data set, me/data
    """

    def told(path: str) -> bytes:
        """What it says of its data set: itself, or a list of its files."""
        files = data or {}
        if "/tree/" in path:
            rows = [{"type": "file", "oid": "", "size": len(files[name]), "path": name} for name in files]
            return json.dumps(rows).encode()
        names = [{"rfilename": name} for name in files]
        return json.dumps({"id": DATA, "sha": "0" * 40, "siblings": names, "private": False, "tags": []}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            model, _, rest = self.path[1:].partition("/resolve/")
            name = rest.partition("/")[2]
            hub.asked.append(f"{model}/{name}")
            if model == f"datasets/{DATA}":
                found = (data or {}).get(name)
            elif model.startswith(f"api/datasets/{DATA}"):
                found = told(self.path)
            else:
                found = file(model, name)
            content = found or b""
            self.send_response(404 if found is None else 200)
            self.send_header("X-Repo-Commit", hashlib.sha1(file(model, "model.safetensors") or b"").hexdigest())
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if found is None:
                self.send_header("X-Error-Code", "RepoNotFound" if model == "me/nobody" else "EntryNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = ModelHub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
