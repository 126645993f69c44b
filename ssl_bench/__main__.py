"""`python -m ssl_bench`, for checkouts that are not installed."""

import sys

from ssl_bench.cli import main

sys.exit(main())
