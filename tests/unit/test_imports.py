import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "openvino",
    "cohere",
    "fastapi",
    "qdrant_client",
    "kreuzberg",
)

SCRIPT = """
import sys
{statement}
print(*sorted(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import pipeline",
        "from pipeline import Pipeline, Settings, Document, query, ingest, register_reranker",
        "import pipeline.cli, pipeline.build, pipeline.display",
    ],
)
def test_importing_the_package_loads_no_heavy_library(statement: str) -> None:
    """Seconds of model libraries are paid by the code path that needs them alone."""
    script = SCRIPT.format(statement=statement, heavy=HEAVY)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "" == found.stdout.strip()


def test_every_public_name_can_be_imported() -> None:
    """``__all__`` and the lazy table agree, and nothing in them is missing."""
    import pipeline

    assert set(pipeline.__all__) == set(pipeline._MODULE_OF)
    assert all(getattr(pipeline, name) is not None for name in pipeline.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy names must not swallow typing mistakes."""
    import pipeline

    with pytest.raises(AttributeError, match="no_such_name"):
        pipeline.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_ingest_is_the_function_even_after_its_parts_are_loaded() -> None:
    """A subpackage of the same name would take its place."""
    script = "import pipeline.core, pipeline.build; from pipeline import ingest, query; print(callable(ingest))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "True" == found.stdout.strip()
