"""The code of docs/python.md and docs/numpy.md runs, block after block, and prints what the page says."""

import pathlib
import re

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "python.md"
NUMPY = PAGE.with_name("numpy.md")


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


@pytest.mark.skipif(not NUMPY.exists(), reason="the tests run outside a checkout")
def test_the_page_on_files_runs(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", NUMPY.read_text(), re.S):
        exec(compile(block, str(NUMPY), "exec"), names)
    said = re.search(r"It prints\n\n```\n(.*?)```", NUMPY.read_text(), re.S)[1]
    without_target = re.compile(r" \((?:avx512|avx2|sse2|neon|scalar)\)$", re.M)
    assert without_target.sub("", capfd.readouterr().out).startswith(without_target.sub("", said))
