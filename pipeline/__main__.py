"""``rag``, and ``python -m pipeline``. What takes time to import is imported where Ctrl-C is taken care of."""

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        from pipeline.cli import main as run
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("rag: stopped", file=sys.stderr)
        sys.exit(0 if sys.argv[1:2] == ["watch"] else 130)  # a watch goes on until then
    run()


if __name__ == "__main__":
    main()
