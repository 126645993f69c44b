"""`python -m ssl_bench`: checkouts that are not installed, and the processes of `benchmark`."""

import sys

from ssl_bench.cli.main import main

sys.exit(main())
