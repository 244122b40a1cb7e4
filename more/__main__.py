"""`python -m more COMMAND`."""

from more.cli import main

if __name__ == "__main__":
    main()
