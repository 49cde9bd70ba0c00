"""`python -m mmdata`."""

from mmdata.cli import main

if __name__ == "__main__":
    main()
