"""The weights that come with the package. Each folder has a card with their origin, licence and hash."""

from __future__ import annotations

from pathlib import Path

#: multilingual-e5-small, cut to English and Chinese.
EMBEDDER = Path(__file__).parent / "embedder"
#: A cross-encoder of six layers of the same backbone.
RERANKER = Path(__file__).parent / "reranker"
#: Upper layers for late interaction, on the embedder's lower ones.
LATE_INTERACTION = Path(__file__).parent / "late_interaction"
