"""The real handler where nothing can be written to the log."""

import sys
from pathlib import Path

from handler.app import lambda_handler as lambda_handler

sys.stdout = Path("/dev/full").open("w")  # noqa: SIM115  until the process ends
