"""The README's client is what it says: it runs against a service that has a store's URL and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.ipam_process import IpamProcess
from tests.support.store import StoreServer

README = Path(__file__).parents[3] / "services/ipam/README.md"


def test_the_client_of_the_readme_leases_an_address_and_gives_it_back(tmp_path):
    [code] = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    with StoreServer() as store:
        process = IpamProcess(store.url, tmp_path)
        process.start()
        code = code.replace("127.0.0.1:7710", process.target)
        done = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
            for _ in range(2)
        ]
        assert 0 == process.stop()

    assert code.count("\n") <= 11
    assert ["10.0.0.0/24 10.0.0.1/24", "10.0.1.0/24 10.0.1.1/24"] == [out.rpartition(" ")[0] for out in done]
