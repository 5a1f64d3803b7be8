"""`python -m skipnets` is `skipnets`."""

import sys

from skipnets.cli import main

sys.exit(main())
