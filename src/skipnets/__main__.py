"""Run the command line with `python -m skipnets`."""

import sys

from skipnets.cli import main

sys.exit(main())
