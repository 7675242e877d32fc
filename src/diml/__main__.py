"""`python -m diml`: the same as the command `diml`, also under torchrun."""

import sys

from diml.cli import main

sys.exit(main())
