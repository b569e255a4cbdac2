"""`python -m tsexport`."""

from tsexport.cli import main

if __name__ == "__main__":
    main(prog_name="tsexport")
