"""`python -m bsfa`: the verbs and options of the native `bsfa`, on Transformers models."""

from bsfa.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
