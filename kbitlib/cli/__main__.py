"""`python -m kbitlib.cli`, where the command itself is not on the path."""

from kbitlib.cli import main

main()
