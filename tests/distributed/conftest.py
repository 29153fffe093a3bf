import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

LINEAR = Path(__file__).parents[1] / "evaluation" / "linear_case.py"


@pytest.fixture
def start_linear():
    """Starts processes that evaluate the linear case together, the last of which may be told where to die.

    What is left of them is ended.
    """
    started = []

    def start(run_dir, samples, chunk_size, world_size=1, die_at=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        group = []
        for rank in range(world_size):
            environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
            command = [sys.executable, str(LINEAR), str(run_dir), str(samples), str(chunk_size)]
            command += map(str, die_at if rank == world_size - 1 else ())
            group.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        started.extend(group)
        return group

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
