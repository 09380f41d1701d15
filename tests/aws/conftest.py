"""The programs here run in the environment that `make aws-tools` makes, not in that of the tests."""

collect_ignore_glob = ["*.py"]
