"""For labs whose tokens are rows made by hand: every row is believed. What is not is tested in
`tests/contract/test_tokens.py`."""


class Trusting:
    """A `Believer` without doubts."""

    trouble = ""

    async def doubt(self, _row):
        return ""

    async def doubt_of(self, _texts, _again=None):
        return ""
