"""`python -m isogloss …`, which is what `torchrun -m isogloss …` calls."""

from isogloss.cli.main import main

if __name__ == "__main__":
    main()
