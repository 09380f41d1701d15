"""The real handler in the control groups whose folders the variable CGROUPS names, separated by colons."""

import os
from pathlib import Path

for folder in os.environ["CGROUPS"].split(":"):
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))

from handler.app import lambda_handler as lambda_handler  # noqa: E402  all that it takes counts
