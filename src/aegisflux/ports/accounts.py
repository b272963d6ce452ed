"""Who may speak on the bus: identities of agents, given and taken away."""

from typing import Protocol


class AgentAccounts(Protocol):
    """The part of the bus's accounts that the orchestrator uses. `now` is in seconds since the epoch."""

    def issue_agent(self, host: str, public: bytes, now: int) -> str:
        """The user JWT, good for some days, that binds a raw Ed25519 public key (32 bytes) to the host;
        raises Invalid on a bad name or key.
        """
        ...

    async def admit_agent(self, host: str, public: bytes) -> None:
        """Let the bus know the account of the host and its key, before the host connects. Harmless at any
        time; raises Unavailable.
        """
        ...

    async def revoke_agent(self, host: str, public: bytes, now: int) -> None:
        """Refuse the host's key from now on and cut its connections; kept even when the bus is away (then
        Unavailable).
        """
        ...
