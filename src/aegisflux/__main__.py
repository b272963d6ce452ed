"""`python -m aegisflux`."""

from aegisflux.cli import main

if __name__ == "__main__":
    main()
