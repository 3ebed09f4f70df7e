"""The garbage collector is off during large imports, and as it was after them."""

import gc

from infalign.imports import quick_imports


def test_the_collector_is_off_meanwhile_and_on_afterwards() -> None:
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled(), "until the outer one ends"
    assert gc.isenabled()
