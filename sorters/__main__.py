"""`python -m sorters` is the `sortcore` command."""

from sorters.cli import main

if __name__ == "__main__":
    main()
