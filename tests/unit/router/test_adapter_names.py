"""Which adapter a name means, while instances come and go."""

from __future__ import annotations

import pytest

from router.models.adapter_names import MAX_REMEMBERED, AdapterNames
from tidepipe_common.errors import IncompatibleError
from tidepipe_common.types.adapter import Adapter

POET, SECOND, COOK = Adapter("poet", "1" * 32), Adapter("poet", "2" * 32), Adapter("cook", "3" * 32)


def test_a_name_stays_until_who_brought_it_comes_without() -> None:
    names = AdapterNames()
    names.take("i0", [POET, COOK], [])
    names.take("i1", [], ["i0"])
    names.take("i2", [COOK], ["i0", "i1"])
    assert (names.fingerprint("poet"), names.fingerprint("cook")) == (POET.fingerprint, COOK.fingerprint)
    assert names.fingerprint(None) == names.fingerprint("") == names.fingerprint("nobody") == ""
    names.take("i0", [], ["i1", "i2"])
    assert (names.fingerprint("poet"), names.fingerprint("cook")) == ("", COOK.fingerprint)


def test_two_contents_of_one_name_are_never_there_together() -> None:
    names = AdapterNames()
    names.take("i0", [POET], [])
    with pytest.raises(IncompatibleError, match="i1 has another adapter poet than instance i0"):
        names.take("i1", [SECOND], ["i0"])
    assert names.fingerprint("poet") == POET.fingerprint
    names.take("i0", [SECOND], ["i0"])
    assert names.fingerprint("poet") == SECOND.fingerprint
    names.take("i1", [POET], [])
    assert names.fingerprint("poet") == POET.fingerprint


def test_it_remembers_so_many_and_no_more() -> None:
    names = AdapterNames()
    for number in range(MAX_REMEMBERED + 5):
        names.take(f"i{number}", [Adapter(f"a{number}", f"{number:032x}")], [])
    assert len(names.names) == MAX_REMEMBERED
    assert not names.fingerprint("a0") and names.fingerprint(f"a{MAX_REMEMBERED + 4}")
