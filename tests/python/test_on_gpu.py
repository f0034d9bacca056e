"""What bench/python_on_gpu.py finds, where there is a GPU and PyTorch: drop-ins, graphs, a model that decodes."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parents[2] / "bench" / "python_on_gpu.py"
HAS_GPU = """
try:
    import torch
    print("yes" if torch.cuda.is_available() else "torch sees no GPU")
except ImportError:
    print("torch is not installed")
"""


def with_the_machine_s_driver():
    return {name: value for name, value in os.environ.items() if name != "SSMJIT_LIBCUDA"}


def test_clients_decode_on_a_gpu():
    answer = subprocess.run([sys.executable, "-c", HAS_GPU], env=with_the_machine_s_driver(), check=False,
                            capture_output=True, text=True).stdout.strip()
    if answer != "yes":
        pytest.skip(answer)
    run = subprocess.run([sys.executable, str(PROGRAM), "--sizes", "tiny", "--steps", "32", "--batches", "2",
                          "--only", "values,teacher,graph,ring,greedy,huggingface"],
                         env=with_the_machine_s_driver(), check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
