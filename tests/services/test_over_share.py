"""Dead letters of a flooder have an end, and push out none of another's."""

from aegisflux.runtime.over_share import LETTER_COST, LETTERS, SAY_SECONDS, LetterRoom


def test_a_host_has_its_share_of_letters_and_is_named_now_and_then(monkeypatch):
    now, said, counted = [0.0], [], []
    monkeypatch.setattr("aegisflux.runtime.over_share.time.monotonic", lambda: now[0])
    room = LetterRoom("dead letters of a test", said.append, counted.append)
    kept = sum(room.take("flooder", 1_000_000) for _ in range(1000))
    assert kept == -(-LETTERS.burst // (1_000_000 + LETTER_COST))
    assert room.take("honest", 1_000_000)
    assert said == ["dead letters of a test: 1 over the share of their host: flooder 1"]
    assert counted == ["dead letters of a test"] * (1000 - int(kept))
    now[0] += SAY_SECONDS
    assert not room.take("flooder", 100)
    assert said[1:] == [
        f"dead letters of a test: {1000 - int(kept)} over the share of their host: flooder {1000 - int(kept)}"
    ]
    now[0] += 86_400
    day = sum(room.take("flooder", 100) for _ in range(100_000))
    assert day * (100 + LETTER_COST) < 64 << 20, "a day's letters"
