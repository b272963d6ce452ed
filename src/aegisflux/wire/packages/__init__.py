"""Databases of packages as values: dpkg, rpm, apk and Python's metadata. None of them is trusted."""
