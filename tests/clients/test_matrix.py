"""The matrix fails on what is not as the table of impossibilities says."""

from tests.clients.generators import CLIENTS, OPERATIONS
from tests.clients.matrix import Outcome, faults, known_impossibilities, page

ALL = dict.fromkeys(OPERATIONS, "")


def outcome(**results: str) -> Outcome:
    return Outcome(CLIENTS[0], "1", results={**ALL, **results})


def test_a_client_that_does_all_has_no_faults() -> None:
    assert faults([outcome()], {}) == []


def test_what_fails_is_a_fault_unless_it_is_known() -> None:
    name = CLIENTS[0].name
    failed = outcome(range="it got all of it")
    assert faults([failed], {}) == [f"{name}: range: it got all of it"]
    assert faults([failed], {name: {"range": "it has no such header"}}) == []


def test_what_works_by_now_is_a_fault() -> None:
    name = CLIENTS[0].name
    assert "works now" in faults([outcome()], {name: {"range": "it has no such header"}})[0]


def test_a_driver_that_says_nothing_of_an_operation_fails() -> None:
    silent = Outcome(CLIENTS[0], "1", results={key: "" for key in OPERATIONS if key != "batch"})
    assert len(faults([silent], {})) == 1


def test_a_client_that_was_not_built_fails_once() -> None:
    assert faults([Outcome(CLIENTS[0], "1", fault="no compiler")], {}) == [f"{CLIENTS[0].name}: no compiler"]


def test_the_table_names_clients_that_there_are() -> None:
    assert known_impossibilities().keys() <= {client.name for client in CLIENTS}


def test_the_page_numbers_the_reasons() -> None:
    text = page([outcome(range="x", mask="y")], {CLIENTS[0].name: {"range": "no header", "mask": "no bytes"}})
    assert "| mask, by range | no (2) |" in text
    assert "1. no bytes\n2. no header\n" in text
