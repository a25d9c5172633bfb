"""``rag eval --report``: one self-contained page."""
