"""The artifact folder: its format, and how versions are installed, switched and removed."""
