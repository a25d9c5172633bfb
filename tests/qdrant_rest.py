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
        self.settings: dict[str, dict[str, Any]] = {}
        """By collection: what local mode has no use for, as a server keeps it."""
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Reply:
        path = request.path.partition("?")[0]
        if path in ("/collections", "/aliases", "/collections/aliases"):
            with self._lock:
                return Reply(json={"result": self._of_all(request, path), "status": "ok", "time": 0.001})
        _, _, name, *rest = path.split("/")
        with self._lock:
            name = {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}.get(name, name)
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
                info = _plain(client.get_collection(name))
                _merge(info["config"], self.settings[name])
                return info
            case "PUT", "":
                if client.collection_exists(name):
                    return Reply(409, {"status": {"error": f"Wrong input: Collection `{name}` already exists!"}})
                asked = request.json
                self.settings[name] = _as_config(asked)
                return client.create_collection(
                    name,
                    vectors_config=_VECTORS.validate_python(asked["vectors"]),
                    sparse_vectors_config=_SPARSE.validate_python(asked["sparse_vectors"]),
                    metadata=asked["metadata"],
                )
            case "PATCH", "":
                if "metadata" in request.json:
                    client.update_collection(name, metadata=request.json["metadata"])
                _merge(self.settings[name], _as_config(request.json))
                return True
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


# What a request calls otherwise than the answer's "config" does.
_PARAMS = (
    "vectors",
    "sparse_vectors",
    "shard_number",
    "replication_factor",
    "write_consistency_factor",
    "on_disk_payload",
)


def _as_config(asked: dict[str, Any]) -> dict[str, Any]:
    """The settings in a request to make or change a collection, laid out as the server's answer has them."""
    config: dict[str, Any] = {"params": {name: asked[name] for name in _PARAMS if asked.get(name) is not None}}
    config["params"] |= asked.get("params", {})
    config["optimizer_config"] = asked.get("optimizers_config", {})
    config["hnsw_config"] = asked.get("hnsw_config", {})
    if "quantization_config" in asked:
        kind = asked["quantization_config"]
        config["quantization_config"] = None if kind == "Disabled" else kind
    return config


def _merge(config: dict[str, Any], changes: dict[str, Any]) -> None:
    """Changes what is named, inside of objects too."""
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(name), dict):
            _merge(config[name], value)
        else:
            config[name] = value


def _plain(model: Any) -> Any:
    return json.loads(model.model_dump_json())
