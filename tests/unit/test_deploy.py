import re
from pathlib import Path

import yaml

from pipeline.settings import Settings, variable

ROOT = Path(__file__).parents[2]


def test_deploy_uses_only_variables_that_exist() -> None:
    """A renamed setting must not leave a container that refuses to start."""
    known = {variable(name) for name in Settings.model_fields}
    for file in ("compose.yaml", "Dockerfile"):
        used = set(re.findall(r"\bRAG_[A-Z_]+", (ROOT / "deploy" / file).read_text()))
        assert used, file
        assert set() == used - known


def test_compose_pins_and_protects_qdrant() -> None:
    """A pinned version, a key without a default, a volume, a health check, and no open port."""
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    qdrant = services["qdrant"]
    assert re.fullmatch(r"qdrant/qdrant:v1\.19\.\d+", qdrant["image"])
    assert qdrant["environment"]["QDRANT__SERVICE__API_KEY"].startswith("${QDRANT_API_KEY:?")
    assert {"CMD", "bash"} <= set(qdrant["healthcheck"]["test"])
    assert all(port.startswith("127.0.0.1:") for port in qdrant["ports"])
    assert ["qdrant:/qdrant/storage"] == qdrant["volumes"]
    assert "service_healthy" == services["rag"]["depends_on"]["qdrant"]["condition"]


def test_the_documents_of_the_example_are_those_of_the_reader() -> None:
    """Compose takes a relative path from the folder of its file, not from where it is run."""
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    assert ["$PWD/docs"] == re.findall(r"\bDOCUMENTS=(\S+)", text)


def test_the_image_is_not_run_by_root() -> None:
    """The last USER before the entry point is not root."""
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert ["rag"] == re.findall(r"^USER (\S+)", text, re.M)


def test_everything_the_image_copies_is_in_the_build_context() -> None:
    """.dockerignore lets through what the Dockerfile copies, and it exists."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.M)
    names = {name for line in copied for name in line.split()}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)
