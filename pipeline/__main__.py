"""``python -m pipeline`` is ``rag``."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
