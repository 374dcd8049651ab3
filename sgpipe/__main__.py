"""`python -m sgpipe` is the command line, too."""

from sgpipe.cli.main import main

if __name__ == "__main__":
    main()
