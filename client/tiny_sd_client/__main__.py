"""``python -m tiny_sd_client`` is the command ``tiny-sd``."""

import sys

from tiny_sd_client.command import main

sys.exit(main())
