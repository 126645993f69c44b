"""`python -m ssl_bench`: checkouts that are not installed, and the processes of `benchmark`."""

import sys

from ssl_bench.cli.main import main
from ssl_bench.runtime.watchdog import end_with_parent

end_with_parent()
sys.exit(main())
