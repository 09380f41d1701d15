"""A Lambda on this machine: the real runtime client as a child process, and a Function URL in front of it."""
