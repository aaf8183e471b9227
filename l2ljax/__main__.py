"""`python -m l2ljax` is the command `l2ljax`."""

from l2ljax.run.command import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
