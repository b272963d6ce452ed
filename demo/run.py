"""Entry of the demo: `script/demo [-o text|json]`. Exit code: 0 all as expected, else 1."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from demo.main import main

    sys.exit(main(sys.argv[1:]))
