"""The part of the Hugging Face hub's interface that downloading a model needs, served from a folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tests.loopback import Reply, Request, Respond

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def serve_model(name: str, folder: Path) -> Respond:
    """Answers for the one model ``name``, whose files are those of ``folder``; any other is not found."""

    def respond(request: Request) -> Reply:
        path = request.path.partition("?")[0]
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if info and info[1] == name:
            files = [{"rfilename": each.relative_to(folder).as_posix()} for each in folder.rglob("*") if each.is_file()]
            return Reply(json={"id": name, "sha": COMMIT, "siblings": files, "tags": []})
        if path.startswith(f"/api/models/{name}/tree/"):
            return Reply(404, {"error": "Entry not found"}, headers={"X-Error-Code": "EntryNotFound"})
        if file and file[1] == name:
            wanted = (folder / file[2]).resolve()
            if not wanted.is_file():
                return Reply(404, {"error": "Entry not found"}, headers={"X-Error-Code": "EntryNotFound"})
            content = wanted.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            return Reply(
                body=content,
                content_type="application/octet-stream",
                headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT},
            )
        return Reply(404, {"error": "Repository not found"}, headers={"X-Error-Code": "RepoNotFound"})

    return respond
