"""Every experiment runs in its quick form, and writes what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "experiments"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_quick_form(script, tmp_path):
    command = [sys.executable, str(script), "--quick", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert f"written to {tmp_path}" in done.stdout
    assert [*tmp_path.glob("*.csv"), *tmp_path.glob("summary.json")]
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
