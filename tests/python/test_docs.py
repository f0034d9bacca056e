"""What docs/PYTHON.md and the README show runs as it is written, on the driver without a GPU."""

import pathlib
import re

import device_memory as memory
import pytest

import ssmjit

ROOT = pathlib.Path(__file__).parents[2]


def blocks(name):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def given():
    """The tensors that the examples name: a step of 3 requests of nemotron3-super-tp8's heads."""
    batch, slots, heads, dim, dstate, groups = 3, 8, 16, 64, 128, 1
    return dict(state=memory.empty((slots, heads, dim, dstate)), x=memory.empty((batch, heads, dim)),
                z=memory.empty((batch, heads, dim)), out=memory.empty((batch, heads, dim)),
                dt=memory.empty((batch, heads), "fp32"), A=memory.empty((heads,), "fp32"),
                D=memory.empty((heads,), "fp32"), dt_bias=memory.empty((heads,), "fp32"),
                B=memory.empty((batch, groups, dstate)), C=memory.empty((batch, groups, dstate)),
                slots=memory.of([2, 5, -1], "int32"))


@pytest.mark.parametrize("name, index", [(name, index) for name in ("docs/PYTHON.md", "README.md")
                                         for index in range(len(blocks(name)))])
def test_an_example_runs_as_written(session, driver, name, index):
    block = blocks(name)[index]
    exec(compile(block, f"{name}, block {index}", "exec"), given())
    assert driver.launches == block.count(".launch(")


def test_there_are_examples():
    assert len(blocks("docs/PYTHON.md")) >= 2 and len(blocks("README.md")) >= 1


def test_the_package_s_own_example_runs_as_written(session, driver):
    lines = [line[4:] for line in ssmjit.__doc__.splitlines() if line.startswith("    ")]
    names = dict(given(), state=memory.empty((8, 16, 64, 128), "fp32"))
    exec(compile("\n".join(lines), "ssmjit.__doc__", "exec"), names)
    assert driver.launches == 1
