"""Who may speak on the bus: identities of agents, given and taken away."""

from typing import Protocol


class AgentAccounts(Protocol):
    """The part of the bus's accounts that the orchestrator uses. `now` is in seconds since the epoch."""

    def issue_agent(self, host: str, public: bytes, now: int) -> str:
        """The user JWT that binds a raw Ed25519 public key (32 bytes) to the host; raises Invalid on a bad
        name or key.
        """
        ...

    async def revoke_agent(self, public: bytes, now: int) -> None:
        """Refuse the key from now on and cut its connections; kept even when the bus is away (then
        Unavailable).
        """
        ...
