"""`python -m maep_lightning` is the same as `lightning`."""

from maep_lightning.cli import main

if __name__ == "__main__":
    main()
