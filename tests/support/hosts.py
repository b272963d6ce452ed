"""File systems of hosts for tests, and what reads their software."""

import subprocess

from aegisflux.adapters.inventory.host import HostSoftware
from aegisflux.domain.inventory import digest_of
from aegisflux.wire.inventory import decode_inventory, encode_inventory

KERNEL = ("6.18.4", "x86_64")


class Host:
    """A host's file system in a folder, and what reads its software."""

    def __init__(self, root, **options):
        self.root = root
        self.software = HostSoftware(root, KERNEL, **options)

    def take(self):
        """The inventory, which must be what it says it is."""
        found = self.software.take("web-1", 7)
        assert found.digest == digest_of(found.system, found.packages)
        assert found.packages == tuple(sorted(found.packages))
        assert decode_inventory(encode_inventory(found)) == found
        return found

    def names(self):
        """What there is, by name, and nothing that failed."""
        found = self.take()
        assert found.failed == ()
        return {one.name: one for one in found.packages}

    def write(self, path, data=b"", mode=0o644):
        """A file below the root."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        file.chmod(mode)
        return file

    def program(self, path):
        """A file that can be executed."""
        return self.write(path, b"#!/bin/sh\n", 0o755)

    def environment(self, prefix, name="app", version="1.0"):
        """An environment with one package that brings one program."""
        site = f"{prefix}/lib/python3.11/site-packages/{name}-{version}.dist-info"
        self.write(f"{site}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
        self.write(f"{site}/RECORD", f"../../../bin/{name},,\n")
        self.program(f"{prefix}/bin/{name}")


class Debian(Host):
    """A host on which the real dpkg works."""

    def __init__(self, root, place, *, merged=True):
        super().__init__(root)
        self.place = place
        for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/bin", "usr/sbin"):
            (root / folder).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        for name in ("bin", "sbin") if merged else ():
            (root / name).symlink_to(f"usr/{name}")

    def dpkg(self, *arguments):
        """Run dpkg on this root only."""
        subprocess.run(
            [
                "dpkg",
                f"--root={self.root}",
                "--log=/dev/null",
                "--force-not-root",
                "--force-bad-path",
                *arguments,
            ],
            check=True,
            capture_output=True,
        )

    def deb(self, name, version, *lines, files=()):
        """A package of real files, made by dpkg-deb."""
        folder = self.place / f"{name}-{version}"
        control = [f"Package: {name}", f"Version: {version}", "Maintainer: A <a@b.example>", "Description: d"]
        if not any(line.startswith("Architecture") for line in lines):
            control.append("Architecture: all")
        (folder / "DEBIAN").mkdir(parents=True)
        (folder / "DEBIAN/control").write_text("\n".join([*control, *lines, ""]))
        for path, mode in files:
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("#!/bin/sh\n")
            file.chmod(mode)
        made = self.place / f"{name}-{version}.deb"
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-b", folder, made], check=True, capture_output=True
        )
        return made
