"""`python -m broker.cli`: the `broker` command of this very environment."""

import sys

from broker.cli import main

sys.exit(main())
