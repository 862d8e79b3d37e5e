"""Stop strings against plain search."""

from hypothesis import given
from hypothesis import strategies as st

from chiasm.serve.stops import StopStrings

SHORT = st.text("ab\n", max_size=12)


@given(st.lists(SHORT, max_size=8), st.lists(st.text("ab\n", max_size=4), max_size=3))
def test_however_the_text_comes_it_ends_before_the_first_stop(pieces, words):
    stops, shown, stopped = StopStrings(words), "", False
    for piece in pieces:
        text, stopped = stops.take(piece)
        shown += text
        if stopped:
            break
    if not stopped:
        shown += stops.rest()
    whole = "".join(pieces)
    places = [whole.find(word) for word in words if word and word in whole]
    # Of overlapping words the one that is complete first ends the reply.
    ends = [whole.find(word) + len(word) for word in words if word and word in whole]
    assert stopped == bool(places)
    if not places:
        assert shown == whole
    else:
        assert whole.startswith(shown)
        assert len(shown) <= min(ends)
        assert not any(word and word in shown for word in words)


def test_only_what_may_begin_a_stop_waits():
    stops = StopStrings(["END"])
    assert stops.take("the E") == ("the ", False)
    assert stops.take("N") == ("", False)
    assert stops.take("T") == ("ENT", False)
    assert stops.take("xEND more") == ("x", True)
