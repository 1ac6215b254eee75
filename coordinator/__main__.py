"""`python -m coordinator` is `ltod`."""

from coordinator.cli import main

if __name__ == "__main__":
    main()
