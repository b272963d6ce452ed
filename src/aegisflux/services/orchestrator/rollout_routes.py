"""Handlers of rollouts in stages: thin, each a call of one part of the orchestrator."""

from typing import Annotated, Any, Final

from litestar import Request, get, post
from litestar.params import Parameter
from msgspec import Meta, Struct

from aegisflux.domain.stages import Verb
from aegisflux.runtime.access import needs, who
from aegisflux.services.orchestrator.api import orchestrator_of
from aegisflux.services.orchestrator.carried import Carried
from aegisflux.services.orchestrator.panic import Panicked, PanicRequest
from aegisflux.services.orchestrator.rollouts import Move, Moved, Told

PANIC_PATH: Final = "/api/v1/panic"
Handler = Request[Any, Any, Any]
DryRun = Annotated[bool, Parameter(description="say what would change, and change nothing")]
RolloutNumber = Annotated[int, Parameter(ge=1, le=2**62, description="the rollout's number")]


class BeginRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The plan that is carried out."""

    plan: Annotated[int, Meta(ge=1, le=2**62)]


class RolloutPage(Struct, frozen=True):
    """Newest first; `next_cursor` is the `before` of the next page."""

    items: tuple[Carried, ...]
    next_cursor: int | None


@post("/api/v1/rollouts", status_code=201, guards=[needs("operator")])
async def begin_rollout(data: BeginRequest, request: Handler, dry_run: DryRun = False) -> Moved:
    """Carry out a plan in stages: judged beside what is in force, then enforced on canary hosts, then
    everywhere. 409 names all that stands in the way.
    """
    return await orchestrator_of(request).rollouts.begin(data.plan, who(request), dry_run)


@get("/api/v1/rollouts", guards=[needs("viewer")])
async def list_rollouts(
    request: Handler,
    limit: Annotated[int, Parameter(ge=1, le=200)] = 50,
    before: Annotated[int, Parameter(ge=1, le=2**62, description="only rollouts below this number")] = 2**62,
) -> RolloutPage:
    """Rollouts, newest first."""
    items = await orchestrator_of(request).rollouts.all(before, limit)
    return RolloutPage(items, items[-1].id if len(items) == limit and items[-1].id > 1 else None)


@get("/api/v1/rollouts/{number:int}", guards=[needs("viewer")])
async def get_rollout(number: RolloutNumber, request: Handler) -> Told:
    """A rollout: where it stands and why, what was seen, what can be done with it, and all its steps."""
    return await orchestrator_of(request).rollouts.one(number)


@post("/api/v1/rollouts/{number:int}/promote", status_code=200, guards=[needs("approver")])
async def promote_rollout(
    number: RolloutNumber, data: Move, request: Handler, dry_run: DryRun = False
) -> Moved:
    """On to the next turn or stage now, without waiting for evidence. 409 when it is not where `data`
    says.
    """
    return await _moved(request, number, "promote", data, dry_run)


@post("/api/v1/rollouts/{number:int}/pause", status_code=200, guards=[needs("operator")])
async def pause_rollout(
    number: RolloutNumber, data: Move, request: Handler, dry_run: DryRun = False
) -> Moved:
    """Nothing passes until `resume`; what fails is taken back nevertheless."""
    return await _moved(request, number, "pause", data, dry_run)


@post("/api/v1/rollouts/{number:int}/resume", status_code=200, guards=[needs("operator")])
async def resume_rollout(
    number: RolloutNumber, data: Move, request: Handler, dry_run: DryRun = False
) -> Moved:
    """Go on by itself after a pause."""
    return await _moved(request, number, "resume", data, dry_run)


@post("/api/v1/rollouts/{number:int}/abort", status_code=200, guards=[needs("operator")])
async def abort_rollout(
    number: RolloutNumber, data: Move, request: Handler, dry_run: DryRun = False
) -> Moved:
    """End it; where something was enforced it is taken back."""
    return await _moved(request, number, "abort", data, dry_run)


@post("/api/v1/rollouts/{number:int}/rollback", status_code=200, guards=[needs("operator")])
async def roll_back_rollout(
    number: RolloutNumber, data: Move, request: Handler, dry_run: DryRun = False
) -> Moved:
    """Give all its hosts what they had before, also after the promotion."""
    return await _moved(request, number, "roll_back", data, dry_run)


@post(PANIC_PATH, status_code=200, guards=[needs("operator")])
async def panic(data: PanicRequest, request: Handler, dry_run: DryRun = False) -> Panicked:
    """Return the fleet, a service or a host to observing, at once: its rules are judged on and block
    nothing. Undone by a rollback.
    """
    return await orchestrator_of(request).panic.observe(data, who(request), dry_run)


async def _moved(request: Handler, number: int, verb: Verb, data: Move, dry_run: bool) -> Moved:
    return await orchestrator_of(request).rollouts.move(number, verb, data, who(request), dry_run)


HANDLERS = (
    begin_rollout, list_rollouts, get_rollout, promote_rollout, pause_rollout, resume_rollout, abort_rollout,
    roll_back_rollout, panic,
)  # fmt: skip
