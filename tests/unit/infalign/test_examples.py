"""Every name that the package exports has an example in its docstring, and the example is right."""

import doctest
from io import StringIO

import pytest

import infalign


@pytest.mark.parametrize("name", infalign.__all__)
def test_the_docstring_has_an_example_that_runs(name: str) -> None:
    target = getattr(infalign, name)
    tests = doctest.DocTestFinder(recurse=False).find(target, name, globs={})
    assert any(test.examples for test in tests), f"infalign.{name} has no example"
    report = StringIO()
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.REPORT_UDIFF).run(test, out=report.write)
    assert not report.getvalue(), report.getvalue()
