"""The agent's process stays small: what it imports."""

import subprocess
import sys

HEAVY = {
    "litestar",
    "asyncpg",
    "cryptography",
    "uvicorn",
    "numpy",
    "prometheus_client",
    "psutil",
    "httpx",
    "rich",
}


def test_the_agents_process_imports_nothing_of_the_control_plane():
    code = (
        "import sys; sys.path.insert(0, 'src')\n"
        "import aegisflux.agent.cli, aegisflux.agent_bootstrap, aegisflux.agent.enroll\n"
        "import aegisflux.adapters.bus.nats, aegisflux.adapters.datapath.bpf.datapath\n"
        "print(' '.join(sorted({m.partition('.')[0] for m in sys.modules})))\n"
        "print(' '.join(m for m in sys.modules if m.startswith('aegisflux.services')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, _, services = done.stdout.partition("\n")
    assert not HEAVY & set(modules.split())
    assert not services.strip()
