"""The code of docs/python.md runs, block after block, and prints what the page says."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the tests run outside a checkout")
def test_the_page_runs(capsys):
    page = PAGE.read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        if "transformers" in block:  # test_transformers.py and test_kvpress.py do that
            continue
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"It prints `([^`]*)`", page)
