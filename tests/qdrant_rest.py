"""The part of Qdrant's REST interface that an ingest and a reindex use, over the client's local mode."""

from __future__ import annotations

import json
import threading
from typing import Any

from pydantic import TypeAdapter
from qdrant_client import QdrantClient, models

from tests.loopback import Reply, Request

_VECTORS = TypeAdapter(dict[str, models.VectorParams])
_ALIASES = TypeAdapter(list[models.AliasOperations])
_SPARSE = TypeAdapter(dict[str, models.SparseVectorParams])


class QdrantRest:
    """Answers requests as Qdrant does; what was stored is in ``client``."""

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        if path in ("/collections", "/aliases", "/collections/aliases"):
            with self._lock:
                return Reply(json={"result": self._of_all(request, path), "status": "ok", "time": 0.001})
        _, _, name, *rest = path.split("/")
        with self._lock:
            if not self.client.collection_exists(name) and (request.method, rest) != ("PUT", []):
                return Reply(404, {"status": {"error": f"Not found: Collection `{name}` doesn't exist!"}})
            result = self._result(request, name, "/".join(rest))
        if isinstance(result, Reply):
            return result
        return Reply(json={"result": result, "status": "ok", "time": 0.001})

    def _of_all(self, request: Request, path: str) -> Any:
        client = self.client
        match request.method, path:
            case "GET", "/collections":
                return _plain(client.get_collections())
            case "GET", "/aliases":
                return _plain(client.get_aliases())
            case "POST", "/collections/aliases":
                return client.update_collection_aliases(_ALIASES.validate_python(request.json["actions"]))
        raise AssertionError(f"not known here: {request.method} {request.path}")

    def _result(self, request: Request, name: str, what: str) -> Any:
        client = self.client
        match request.method, what:
            case "GET", "":
                return _plain(client.get_collection(name))
            case "PUT", "":
                if client.collection_exists(name):
                    return Reply(409, {"status": {"error": f"Wrong input: Collection `{name}` already exists!"}})
                asked = request.json
                return client.create_collection(
                    name,
                    vectors_config=_VECTORS.validate_python(asked["vectors"]),
                    sparse_vectors_config=_SPARSE.validate_python(asked["sparse_vectors"]),
                    metadata=asked["metadata"],
                )
            case "PATCH", "":
                return client.update_collection(name, metadata=request.json["metadata"])
            case "DELETE", "":
                return client.delete_collection(name)
            case "PUT", "index":
                return {"operation_id": 1, "status": "completed"}  # local mode has no indexes
            case "PUT", "points":
                client.upsert(name, models.PointsList.model_validate(request.json).points)
                return {"operation_id": 1, "status": "completed"}
            case "POST", "points/delete":
                client.delete(name, models.PointIdsList.model_validate(request.json))
                return {"operation_id": 1, "status": "completed"}
            case "POST", "points/scroll":
                page = models.ScrollRequest.model_validate(request.json)
                records, offset = client.scroll(
                    name,
                    scroll_filter=page.filter,
                    limit=page.limit or 10,
                    offset=page.offset,
                    with_payload=page.with_payload or False,
                    with_vectors=page.with_vector or False,
                )
                return {"points": [_plain(record) for record in records], "next_page_offset": offset}
        raise AssertionError(f"not known here: {request.method} {request.path}")


def _plain(model: Any) -> Any:
    return json.loads(model.model_dump_json())
